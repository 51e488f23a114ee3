"""What goes wrong when a server is started says what to do; what a folder keeps is kept."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.install_servers import install, verify
from infra.kafka import running_kafka
from infra.kept_secrets import SECRETS, keep_together, kept_secret, kept_secrets, password_file
from infra.postgres import running_postgres
from infra.processes import descendants
from infra.redis import running_redis
from infra.servers import Server, call, filled, kept_ports, program, running, write_private
from vista.errors import BackendError, InputError

ROOT = Path(__file__).parents[2]


def test_a_server_that_ends_shows_the_end_of_its_log(tmp_path: Path) -> None:
    server = Server("broken", tmp_path, ["sh", "-c", "echo no such setting; exit 3"], lambda: False, 30)
    with (
        pytest.raises(BackendError, match=r"broken ended; .*broken.log ends with:\nno such setting"),
        running([server]),
    ):
        pytest.fail("it never answered")


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    server = Server("silent", tmp_path, ["sleep", "600"], lambda: False, 0.5)
    with pytest.raises(BackendError, match="silent did not answer within 0 s"), running([server]):
        pytest.fail("it never answered")
    assert descendants(os.getpid()) == before


def test_peers_are_ended_when_one_of_them_fails(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    good = Server("good", tmp_path, ["sleep", "600"], lambda: True, 30)
    bad = Server("bad", tmp_path, ["false"], lambda: False, 30)
    with pytest.raises(BackendError, match="bad ended"), running([good, bad]):
        pytest.fail("one never answered")
    assert descendants(os.getpid()) == before


def test_a_missing_program_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="make infra, or as root: apt-get install redis-server"):
        program("redis-server")
    with (
        pytest.raises(BackendError, match="redis-server is not installed"),
        running_redis(tmp_path / "redis"),
    ):
        pytest.fail("there is no program")


def test_a_program_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.servers.CALL_S", 0.5)
    with pytest.raises(BackendError, match="counting sheep was not done within"):
        call(["sleep", "600"], "counting sheep")


def test_missing_jars_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("infra.java.SERVERS", tmp_path / "servers")
    with (
        pytest.raises(BackendError, match=r"kafka 4.3.1 is not installed in .*: make infra"),
        running_kafka(tmp_path),
    ):
        pytest.fail("there are no jars")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's PostgreSQL runs as another user")
def test_a_folder_that_postgres_cannot_enter_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with (
        pytest.raises(BackendError, match="is closed to the user postgres"),
        running_postgres(tmp_path / "closed" / "pg"),
    ):
        pytest.fail("it cannot run there")


def test_ports_are_kept_and_one_in_use_is_named(tmp_path: Path) -> None:
    ports = kept_ports(tmp_path, 3)
    assert kept_ports(tmp_path, 3) == ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[1]))
        taken.listen()
        with pytest.raises(BackendError, match=f"port {ports[1]} of {tmp_path} is in use"):
            kept_ports(tmp_path, 3)


def test_ports_that_a_stopped_server_beside_it_keeps_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps 310; what was started while it was stopped took one of them, and no start worked again."""
    ray, other = tmp_path / "ray", tmp_path / "other"
    for place in (ray, other):
        place.mkdir()
    kept = set(kept_ports(ray, 310))
    monkeypatch.setattr("infra.ports.FIRST_PORT", min(kept) - 60)
    monkeypatch.setattr("infra.ports.LAST_PORT", max(kept) + 60)
    for _ in range(5):
        assert kept.isdisjoint(kept_ports(other, 2))
        (other / "ports.json").unlink()


def test_secrets_are_kept_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    place = tmp_path / "server"
    place.mkdir()
    password = kept_secret(place, "vista")
    assert kept_secret(place, "admin") != password == kept_secret(place, "vista")
    copy = password_file(place, "vista")
    assert copy.read_text() == password
    assert {path.stat().st_mode & 0o777 for path in (copy, place / SECRETS)} == {0o600}


def test_the_secrets_of_a_stack_are_in_one_file(tmp_path: Path) -> None:
    for name in ("redis-east", "redis-west"):
        (tmp_path / name).mkdir()
    file = keep_together(tmp_path)
    east, west = (kept_secret(tmp_path / name, "vista") for name in ("redis-east", "redis-west"))
    assert keep_together(tmp_path) == file
    assert json.loads(file.read_text()) == {"redis-east/vista": east, "redis-west/vista": west}
    assert kept_secrets(tmp_path / "redis-west") == {"vista": west}
    assert file.stat().st_mode & 0o777 == 0o600
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != file]


def test_a_private_file_is_private_though_an_open_one_was_there(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_values_are_escaped_in_xml_and_none_may_be_missing() -> None:
    assert "<value>http://a&amp;b</value>" in filled("hive/core-site.xml", s3_endpoint="http://a&b")
    with pytest.raises(KeyError, match="s3_endpoint"):
        filled("hive/core-site.xml")


def test_jars_that_are_not_as_locked_are_named(tmp_path: Path) -> None:
    for name in ("good.jar", "changed.jar", "added.jar"):
        (tmp_path / name).write_text("content")
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # of "content"
    lock = f"{digest}  good.jar\n{digest[::-1]}  changed.jar\n{digest}  absent.jar\n"
    with pytest.raises(BackendError, match=r"locks: absent.jar, added.jar, changed.jar\. .* sha256sum"):
        verify(tmp_path, lock, tmp_path)
    for name in ("changed.jar", "added.jar"):
        (tmp_path / name).unlink()
    verify(tmp_path, f"{digest}  good.jar\n", tmp_path)


def test_installing_again_does_nothing_and_says_where_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.install_servers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"the servers are in {ROOT / 'build' / 'servers'}\n"


def test_who_may_not_install_is_told_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match=r"as root, .*: apt-get install .* maven .* redis-server"):
        install()
