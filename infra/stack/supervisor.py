"""The process above a local stack: starts it in order, starts again what ends, stops all at the end.

`python -m infra.stack.supervisor PLACE real|embedded` is what `make up` starts. Servers run below guards, so
that nothing stays when this process is killed.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from infra.processes import adopt_orphans, children, descendants, kill_all
from infra.services import Service, Services
from infra.stack.layout import start
from infra.stack.state import Place, Seen, State
from vista.errors import VistaError

LOOK_S = 0.5
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 16.0
LASTING_S = 60.0
"""What was ready for so long is started again at once; what ends sooner, after longer and longer pauses."""


class Supervisor:
    """Writes down how the services are, and starts again those that end."""

    def __init__(self, place: Place, *, embedded: bool) -> None:
        self.state = State(phase="starting", embedded=embedded)
        self._place = place
        self._pauses_s: dict[str, float] = {}

    def tell(self, services: Services, **changes: object) -> None:
        """Write the state down, if it is new."""
        found = {"services": tuple(map(_seen, services.started)), "starting": services.starting, **changes}
        state = self.state.model_copy(update=found)
        if state != self.state:
            self._place.write(state)
            self.state = state

    def watch(self, services: Services) -> None:
        """For ever, until this process is told to stop."""
        while True:
            for service in services.started:
                self._look(service, services)
            self.tell(services)
            time.sleep(LOOK_S)

    def _look(self, service: Service, services: Services) -> None:
        now_s = time.monotonic()
        so_far_s = now_s - service.since_s
        if service.state == "ended":
            if so_far_s >= self._pauses_s[service.name]:
                kill_all(lambda: _strays(services))
                service.server.start()
                service.state, service.since_s, service.lives = "starting", now_s, service.lives + 1
        elif service.server.ended:
            self._pauses_s[service.name] = self._pause_s(service, so_far_s)
            if service.shown != "waiting":
                services.say(f"{service.name} ended; it starts again in {self._pauses_s[service.name]:.0f} s")
            service.state, service.since_s = "ended", now_s
        elif service.state == "starting" and service.server.answers():
            service.state, service.since_s = "ready", now_s
            services.say(f"{service.name} ready again")
        elif service.state == "starting" and so_far_s > service.server.start_s and not service.may_wait:
            service.server.stop()

    def _pause_s(self, service: Service, lived_s: float) -> float:
        if service.state == "ready" and lived_s > LASTING_S:
            return 0.0
        return min(max(FIRST_PAUSE_S, 2 * self._pauses_s.get(service.name, 0.0)), LAST_PAUSE_S)


def _strays(services: Services) -> set[int]:
    """Processes whose guard was killed; they would keep the ports of those that follow them."""
    guards = {service.server.guard_pid for service in services.started if not service.server.ended}
    adopted = set(children().get(os.getpid(), [])) - guards
    return adopted.union(*map(descendants, adopted))


def _seen(service: Service) -> Seen:
    server = service.server
    return Seen(
        name=service.name,
        state=service.shown,
        address=service.address,
        guard=None if server.ended else server.guard_pid,
        pid=None if server.ended else server.pid,
        restarts=service.lives - 1,
        log=server.log,
    )


def run(place: Place, *, embedded: bool) -> None:
    """Until this process is told to stop. Raises `VistaError` if the stack cannot be started."""
    adopt_orphans()
    with place.held():
        supervisor = Supervisor(place, embedded=embedded)
        try:
            with Services(supervisor.tell) as services:
                try:
                    pages = start(services, place.path, embedded=embedded)
                    services.starting = ""
                    supervisor.tell(services, phase="up", pages=pages)
                    supervisor.watch(services)
                finally:
                    supervisor.tell(services, phase="stopping")
        finally:
            kill_all(lambda: descendants(os.getpid()))  # what guards that were killed left
            place.forget()


def _told_to_stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    """Exit code 1 if it could not be started, 143 when it was told to stop."""
    signal.signal(signal.SIGTERM, _told_to_stop)
    path, kind = arguments
    try:
        run(Place(Path(path)), embedded=kind == "embedded")
    except VistaError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
