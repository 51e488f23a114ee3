"""The stack's supervisor over real processes that hang and write long logs.

`python test_supervisor.py PLACE` is one over two small servers; it knows no other children, unlike a test.
"""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import processes
from infra.http_calls import answers
from infra.processes import wait_until
from infra.servers import HOST, Server, kept_ports, private_folder, running
from infra.services import Service, Services
from infra.stack import __main__ as stack
from infra.stack import supervisor
from infra.stack.state import Place, Seen, State
from infra.stack.supervisor import Supervisor, keep_short
from vista.errors import BackendError, InputError

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


def test_what_hangs_is_started_again_and_what_needs_it_is_left_alone(tmp_path: Path) -> None:
    command, log = [sys.executable, __file__, str(tmp_path)], tmp_path / "first" / "first.log"
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            assert wait_until(lambda: len(_seen(tmp_path)) == 2, WAIT_S)
            asked = log.read_text().count("GET")
            assert wait_until(lambda: log.read_text().count("GET") > asked + 1, WAIT_S)
            before = _seen(tmp_path)
            assert {seen.restarts for seen in before.values()} == {0}  # nobody asked while the second started
            hanging = before["first"].pid
            assert hanging is not None
            os.kill(hanging, signal.SIGSTOP)

            def healed() -> bool:
                first = _seen(tmp_path)["first"]
                return (first.restarts, first.state) == (1, "ready")

            assert wait_until(healed, WAIT_S), _seen(tmp_path)
            assert _seen(tmp_path)["first"].pid != hanging
            assert _seen(tmp_path)["second"] == before["second"]
        finally:
            process.terminate()


def test_a_second_supervisor_is_refused_and_forgets_nothing_of_the_first(tmp_path: Path) -> None:
    place, up = Place(tmp_path), State(phase="up", embedded=True)
    place.write(up)  # of a supervisor that was killed
    with place.held():
        assert place.read() is None
        place.write(up)
        with pytest.raises(InputError, match="has a stack that is up: make down"), Place(tmp_path).held():
            pass
        assert place.read() == up
        assert place.supervisor() == os.getpid()


def test_who_was_slower_is_not_told_that_nothing_runs(tmp_path: Path) -> None:
    """Of two `make up` at once one starts the stack."""
    place = Place(tmp_path)
    with place.held(), subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]) as slower:
        place.log.touch()
        with pytest.raises(BackendError, match=rf"another one is up.* under supervisor {os.getpid()}: make"):
            stack._follow(place, slower, 0)
    with pytest.raises(BackendError, match=r"could not be started: see .*; nothing runs"):
        stack._follow(place, slower, 0)


def test_logs_of_a_supervisor_that_was_killed_are_not_followed(tmp_path: Path) -> None:
    Place(tmp_path).write(State(phase="up", embedded=True))
    with pytest.raises(InputError, match="no stack is up"):
        stack.logs(Place(tmp_path), "")


def test_a_supervisor_that_does_not_stop_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "DOWN_S", 0.5)
    hold = """import pathlib, signal, sys, time
from infra.stack.state import Place
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with Place(pathlib.Path(sys.argv[1])).held():
    print(flush=True)
    time.sleep(600)"""
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BackendError, match=rf"supervisor {process.pid} .*: kill -9 {process.pid} ends"):
            stack.down(Place(tmp_path))
        process.kill()
    stack.down(Place(tmp_path))


def test_a_look_for_a_supervisor_keeps_none_from_starting(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        done = threading.Timer(0.3, lambda: fcntl.flock(looks, fcntl.LOCK_UN))
        done.start()
        with Place(tmp_path).held():
            done.join()


def test_a_long_log_is_moved_and_its_writer_goes_on_in_the_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 100_000)
    writes = "i=0; while :; do i=$((i+1)); echo line $i; test $((i % 1000)) != 0 || sleep 0.1; done"
    server = Server("writer", tmp_path, ["sh", "-c", writes], lambda: True, WAIT_S)
    with running([server]):
        assert wait_until(lambda: server.log.stat().st_size > 100_000, WAIT_S)
        keep_short(server.log)
        assert (tmp_path / "writer.log.1").stat().st_size > 100_000
        assert wait_until(lambda: server.log.stat().st_size > 20_000, WAIT_S)
    newest = server.log.read_bytes()
    assert b"line " in newest
    assert b"\0" not in newest  # it appends: there is no hole where the old lines were


def test_a_log_that_fits_nowhere_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    monkeypatch.setattr(supervisor.shutil, "copyfile", _full_disk)
    log = tmp_path / "writer.log"
    log.write_text("what was written\n" * 10)
    keep_short(log)
    assert log.read_text() == ""


def test_a_full_disk_ends_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's end is that of all services; what it could not write down it writes later."""
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)
    written: list[State] = []
    services, watching = Services(), Supervisor(Place(tmp_path), embedded=True)

    def write(place: Place, state: State) -> None:
        written.append(state)
        if len(written) < 3:
            _full_disk()
        raise SystemExit

    monkeypatch.setattr(Place, "write", write)
    services.starting = "something new"
    with pytest.raises(SystemExit):
        watching.watch(services)
    assert len(written) == 3


def test_a_service_whose_answer_makes_no_sense_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nobody would ever ask it again, and it would be started again for ever."""
    monkeypatch.setattr(supervisor, "LOOK_S", 0.01)
    asked: list[float] = []

    def answer() -> bool:
        asked.append(time.monotonic())
        return bool({}["waiting"]) if len(asked) == 1 else True

    server = Server("s", tmp_path, ["true"], answer, WAIT_S)
    service = Service("s", server, "-", "starting", time.monotonic())
    threading.Thread(target=supervisor._ask, args=(service,), daemon=True).start()
    assert wait_until(lambda: service.answered_s > service.since_s, 10.0)
    service.state = "ended"  # nobody asks any more


def test_a_region_s_worker_that_ends_is_not_shown_as_one_that_waits(tmp_path: Path) -> None:
    """One with a wrong setting ends again and again."""
    server = Server("s", tmp_path, ["false"], lambda: False, WAIT_S)
    service = Service("s", server, "-", "starting", 0.0, may_wait=True)
    assert service.shown == "waiting"
    service.state = "ended"
    assert service.shown == "ended"


def test_what_does_not_stop_in_time_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as guard:
        assert guard.stdout is not None
        below = int(guard.stdout.readline())
        processes.stop(guard)
        assert guard.poll() == -signal.SIGKILL
    assert wait_until(lambda: not processes.alive(below), WAIT_S)


def test_the_children_of_some_are_those_of_all() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 & sleep 600 & echo; wait"], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        found = processes.children_of([parent.pid])
        assert sorted(found[parent.pid]) == sorted(processes.children()[parent.pid])
        assert len(found[parent.pid]) == 2
        processes.kill_all(lambda: processes.descendants(parent.pid))
    assert processes.children_of([parent.pid]).get(parent.pid) is None


def _full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _seen(place: Path) -> dict[str, Seen]:
    state = Place(place).read()
    return {seen.name: seen for seen in state.services} if state else {}


def _web_server(place: Path, start_s: float, needs: Callable[[], bool] = lambda: True) -> Server:
    """Python's own, which takes its time to start; it counts as ready only while what it needs is."""
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    serve = [sys.executable, "-m", "http.server", str(port), "--bind", HOST, "--directory", str(place)]
    command = ["sh", "-c", f'sleep {start_s}; exec "$@"', "sh", *serve]
    return Server(place.name, place, command, lambda: needs() and answers(f"http://{HOST}:{port}"), WAIT_S)


def main(place: Path) -> None:
    """Watch two servers, the second of which needs the first and starts for longer than silence may last."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    supervisor.PROBE_S, supervisor.LATE_S, supervisor.HANGS_S = 0.2, 1.0, 8.0
    watching = Supervisor(Place(place), embedded=True)
    first = _web_server(place / "first", 0.0)
    with Services(watching.tell) as services:
        for server in (first, _web_server(place / "second", 10.0, first.answers)):
            services.enter(server.name, running([server]))
            services.ready(server.name, server, "-")
        watching.watch(services)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
