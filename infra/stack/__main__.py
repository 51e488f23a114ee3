"""The local stack: `make up [EMBEDDED=1]`, `make status`, `make logs [SERVICE=name]`, `make down`.

The stack is the folder VISTA_STACK (default var/stack): data, logs, ports and passwords stay in it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from infra.environment import ROOT, inherited
from infra.processes import alive, descendants, memory_bytes, wait_until
from infra.services import MARK, guards_of, wait_for_earlier, wall_time
from infra.stack.layout import ENVIRONMENT
from infra.stack.state import Place, State
from vista.errors import BackendError, InputError, VistaError

DOWN_S = 240.0
"""Each server gets 12 s to stop by itself."""
SAY_S = 10.0
LOG_LINES = 20


def up(place: Place, *, embedded: bool) -> None:
    """Start a stack; returns when it is ready. Raises `InputError`: one is up; `BackendError`."""
    if place.supervisor():
        raise InputError(f"the stack in {place.path} is up: make status shows it, make down stops it")
    wait_for_earlier(place.path)
    place.path.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    kind = "embedded" if embedded else "real"
    command = [sys.executable, "-m", "infra.stack.supervisor", str(place.path), kind]
    with place.log.open("ab", buffering=0) as log:
        log.write(f"{wall_time()} the stack starts, {kind}\n".encode())
        said = log.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**inherited(), MARK: str(place.path)}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        state = _follow(place, process, said)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        print(_what_runs(place), file=sys.stderr)
        raise
    pages = "\n".join(state.pages)
    print(f"up after {time.monotonic() - started_s:.0f} s\n\n{pages}\n")
    print("look at it by make status, make logs SERVICE=name; stop it by make down")
    print(f"a shell for python -m vista: source {place.path / ENVIRONMENT}")


def _follow(place: Place, process: "subprocess.Popen[bytes]", said: int) -> State:
    """Show what the supervisor says until all is up."""
    spoke_s = time.monotonic()
    while True:
        ended = process.poll() is not None
        state = place.read() if place.supervisor() == process.pid else None  # else an earlier one's
        with place.log.open("rb") as log:
            log.seek(said)
            text = log.read()
        if text:
            print(text.decode(errors="replace"), end="", flush=True)
            said, spoke_s = said + len(text), time.monotonic()
        if ended:
            raise BackendError(f"this stack could not be started: see {place.log}; {_what_runs(place)}")
        if state and state.phase == "up":
            return state
        if state and time.monotonic() - spoke_s > SAY_S:
            print(f"         waiting for {state.starting}", flush=True)
            spoke_s = time.monotonic()
        time.sleep(0.2)


def _what_runs(place: Place) -> str:
    """After a supervisor has ended: another `make up` may have been faster."""
    if pid := place.supervisor():
        return f"another one is up, or starts, under supervisor {pid}: make status shows it"
    left = guards_of(place.path)
    return f"processes {sorted(left)} go on: make down ends them" if left else "nothing runs"


def status(place: Place) -> bool:
    """Print a line per service; whether all of them are ready, or have nothing to do yet."""
    state = place.read() if place.supervisor() else None
    if state is None:
        print(f"no stack is up in {place.path}: make up")
        return False
    print(f"{'service':<22} {'state':<9} {'address':<28} {'pid':>8} {'memory':>9} {'restarts':>8}")
    total = 0
    for service in state.services:
        used = memory_bytes({service.guard, *descendants(service.guard)}) if service.guard else 0
        total += used
        print(
            f"{service.name:<22} {service.state:<9} {service.address:<28} {service.pid or '-':>8} "
            f"{used / 2**20:>6,.0f} MB {service.restarts:>8}"
        )
    print(f"{len(state.services)} services, {total / 2**20:,.0f} MB; the stack is {state.phase}")
    if state.starting:
        print(f"now starting {state.starting}")
    return state.phase == "up" and all(service.state in ("ready", "waiting") for service in state.services)


def logs(place: Place, service: str) -> None:
    """Become `tail -F` of the log of a service, or of all. Raises `InputError`: it does not exist."""
    state = place.read() if place.supervisor() else None  # else that of one that was killed
    if state is None:
        raise InputError(f"no stack is up in {place.path}; the logs of an earlier one are *.log below it")
    found = {seen.name: seen.log for seen in state.services} | {"supervisor": place.log}
    if service and service not in found:
        raise InputError(f"SERVICE={service}: there are {', '.join(found)}")
    chosen = [found[service]] if service else sorted(set(found.values()))
    os.execvp("tail", ["tail", f"--lines={LOG_LINES}", "-F", *map(str, chosen)])


def down(place: Place) -> None:
    """Stop a stack; returns when nothing of it is left. Raises `BackendError`: what is left."""
    pid, left = place.supervisor(), guards_of(place.path)
    if not pid and not left:
        print(f"no stack is up in {place.path}")
        return
    started_s = time.monotonic()
    if pid:
        os.kill(pid, signal.SIGTERM)
    before = len(left)

    def gone() -> bool:
        nonlocal before
        now = guards_of(place.path)
        if len(now) < before:
            print(f"[{time.monotonic() - started_s:5.0f} s] {len(now)} servers left", flush=True)
        before = len(now)
        return not now and not (pid and alive(pid))

    if not wait_until(gone, DOWN_S):
        guards = sorted(guards_of(place.path))
        if pid and alive(pid):
            what, ends = f"the supervisor {pid} and guards {guards} go on", [pid]  # they end with it
        else:
            what, ends = f"the supervisor has ended, guards {guards} go on", guards
        raise BackendError(
            f"{what} after {DOWN_S:.0f} s: kill -9 {' '.join(map(str, ends))} ends them; see {place.log}"
        )
    print(f"down after {time.monotonic() - started_s:.0f} s")


def run(command: str, variables: Mapping[str, str], place: Place) -> int:
    """The exit code of a command."""
    known = {"up": {"EMBEDDED"}, "logs": {"SERVICE"}}.get(command, set())
    if unknown := sorted(variables.keys() - known):
        raise InputError(f"make {command} {unknown[0]}=...: it takes {', '.join(known) or 'nothing'}")
    match command:
        case "up":
            up(place, embedded=variables.get("EMBEDDED", "") not in ("", "0"))
        case "status":
            return 0 if status(place) else 1
        case "logs":
            logs(place, variables.get("SERVICE", ""))
        case "down":
            down(place)
        case _:
            raise InputError(f"{command!r} is not one of up, status, logs, down")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 done, 1 it failed or not all is ready, 2 a wrong argument, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command, *given = arguments
    place = Place.named(os.environ)
    try:
        return run(command, dict(argument.split("=", 1) for argument in given), place)
    except (VistaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, VistaError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
