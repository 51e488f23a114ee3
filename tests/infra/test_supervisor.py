"""The stack's supervisor over real processes that hang and write long logs.

`python test_supervisor.py PLACE` is one over two small servers; it knows no other children, unlike a test.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.http_calls import answers
from infra.processes import wait_until
from infra.servers import HOST, Server, kept_ports, private_folder, running
from infra.services import Services
from infra.stack import supervisor
from infra.stack.state import Place, Seen
from infra.stack.supervisor import Supervisor, keep_short

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
