"""The process above a local stack: starts it in order, starts again what ends or hangs, keeps the logs short,
stops all at the end.

`python -m infra.stack.supervisor PLACE real|embedded` is what `make up` starts. Servers run below guards, so
that nothing stays when this process is killed.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from infra.processes import adopt_orphans, children, children_of, descendants, kill_all
from infra.services import Service, Services, wall_time
from infra.stack.layout import start
from infra.stack.state import Place, Seen, State
from vista.errors import VistaError

LOOK_S = 0.5
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 16.0
LASTING_S = 60.0
"""What was ready for so long is started again at once; what ends sooner, after longer and longer pauses."""


PROBE_S = 5.0
"""Between two questions to a service that is ready."""
LATE_S, HANGS_S = 15.0, 120.0
"""Silence after which what depends on a service is excused, and after which the service is ended."""
LOG_BYTES = 16 * 2**20


class Supervisor:
    """Writes down how the services are, and starts again those that end or do not answer any more."""

    def __init__(self, place: Place, *, embedded: bool) -> None:
        self.state = State(phase="starting", embedded=embedded)
        self._place = place
        self._pauses_s: dict[str, float] = {}

    def tell(self, services: Services, **changes: object) -> None:
        """Write the state down, if it is new."""
        below = children_of(one.server.guard_pid for one in services.started if not one.server.ended)
        seen = tuple(_seen(service, below) for service in services.started)
        found = {"services": seen, "starting": services.starting, **changes}
        state = self.state.model_copy(update=found)
        if state != self.state:
            self._place.write(state)
            self.state = state

    def watch(self, services: Services) -> None:
        """For ever, until this process is told to stop."""
        for service in services.started:
            service.excused_s = time.monotonic()  # nobody asked while the others were started
            # A question to a server that hangs may take minutes: nobody else waits for it
            threading.Thread(target=_ask, args=(service,), daemon=True).start()
        while True:
            with suppress(OSError):  # a disk that is full: nothing that runs ends for it
                self._look_at_all(services)
            time.sleep(LOOK_S)

    def _look_at_all(self, services: Services) -> None:
        excused = False
        for service in services.started:
            if excused:  # by one that is not well: what it depends on was started before it
                service.excused_s = time.monotonic()
            self._look(service, services)
            excused |= not _well(service)
            keep_short(service.server.log)
        keep_short(self._place.log)
        self.tell(services)

    def _look(self, service: Service, services: Services) -> None:
        now_s = time.monotonic()
        so_far_s = now_s - service.since_s
        if service.state == "ended":
            if so_far_s >= self._pauses_s[service.name]:
                kill_all(lambda: _strays(services))
                service.server.start()
                service.state, service.since_s, service.lives = "starting", now_s, service.lives + 1
        elif service.server.ended:
            pause_s = self._pauses_s[service.name] = self._pause_s(service, so_far_s)
            service.state, service.since_s = "ended", now_s
            services.note(f"{service.name} ended; it starts again in {pause_s:.0f} s")
        elif service.state == "starting" and service.answered_s > service.since_s:
            service.state, service.since_s = "ready", now_s
            services.note(f"{service.name} ready again")
        elif service.state == "starting" and so_far_s > service.server.start_s and not service.may_wait:
            service.server.stop()
        elif service.state == "ready" and now_s - service.silent_since_s > HANGS_S:
            services.note(f"{service.name} has not answered for {HANGS_S:.0f} s: it is ended")
            service.server.stop()

    def _pause_s(self, service: Service, lived_s: float) -> float:
        if service.state == "ready" and lived_s > LASTING_S:
            return 0.0
        return min(max(FIRST_PAUSE_S, 2 * self._pauses_s.get(service.name, 0.0)), LAST_PAUSE_S)


def _ask(service: Service) -> None:
    """For ever: ask a service whether it is ready, all the time while it starts."""
    asked_s = 0.0
    while True:
        now_s = time.monotonic()
        if service.state == "starting" or (service.state == "ready" and now_s - asked_s > PROBE_S):
            asked_s = now_s
            with suppress(Exception):  # whatever it answers: nobody else would ask it again
                if service.server.answers():
                    service.answered_s = asked_s
        time.sleep(LOOK_S)


def _well(service: Service) -> bool:
    ready = service.state == "ready" and time.monotonic() - service.silent_since_s < LATE_S
    return ready or service.shown == "waiting"


def keep_short(log: Path) -> None:
    """Move what a log holds to LOG.1 when it is large, of a disk that is full what fits there. Its writers
    append: they go on at the new end."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        with suppress(OSError):
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _strays(services: Services) -> set[int]:
    """Processes whose guard was killed; they would keep the ports of those that follow them."""
    guards = {service.server.guard_pid for service in services.started if not service.server.ended}
    adopted = set(children().get(os.getpid(), [])) - guards
    return adopted.union(*map(descendants, adopted))


def _seen(service: Service, below: Mapping[int, list[int]]) -> Seen:
    server = service.server
    return Seen(
        name=service.name,
        state=service.shown,
        address=service.address,
        guard=None if server.ended else server.guard_pid,
        pid=None if server.ended else server.pid_among(below),
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
                    services.note("the stack stops")
        finally:
            kill_all(lambda: descendants(os.getpid()))  # what guards that were killed left
            place.forget()
            print(f"{wall_time()} the stack is down", flush=True)


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
