"""The embedded back ends' failures: each one `BackendError` that names the URL and a remedy."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, record, users_of

from vista.delivery import sqlite
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.control import retirement
from vista.delivery.log import open_log
from vista.delivery.sqlite import Database
from vista.delivery.store import open_store
from vista.errors import BackendError, InputError

TABLE = "CREATE TABLE IF NOT EXISTS t (x BLOB)"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("shopping list " * 1_000)
    with pytest.raises(BackendError, match=r"notes\.db: .*NOTADB.*move it away or correct the URL"):
        open_catalog(f"sqlite:///{path}").releases()
    assert path.read_text().startswith("shopping list"), "it was left as it was"


def test_a_row_that_was_damaged_inside_a_whole_file(tmp_path: Path) -> None:
    catalog = open_catalog(f"sqlite:///{tmp_path}/catalog.db")
    assert catalog.releases() == []
    assert not list(tmp_path.iterdir()), "reading makes nothing"
    catalog.note(audit_line("freeze", "me", "the first write makes the file"))
    with Database(f"sqlite:///{tmp_path}/catalog.db", TABLE).write() as connection:
        connection.execute("INSERT INTO releases (id, body) VALUES ('r-1', '{\"id\": \"r-')")
    with pytest.raises(BackendError, match=r"catalog\.db: a row is damaged .*restore a catalog"):
        catalog.releases()


def test_the_log_deletes_what_is_retired(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path}/log.db", BUCKETS)
    (user,) = users_of(3, 1)
    log.append(3, [record(user, epoch=1), record(user, epoch=3), record(user, epoch=2)])
    log.append(3, [retirement(SPACES[0], 2)])
    assert log.read(3, 0, 10**6) == [(1, record(user, epoch=3)), (3, retirement(SPACES[0], 2))]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match=r"below\.db: .*must exist and be writable"):
        open_log(f"sqlite:///{tmp_path}/file/below.db", BUCKETS)


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="CANTOPEN"):
        open_store(f"sqlite:///{tmp_path}", BUCKETS).state(0)


def test_a_database_that_somebody_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.05)
    database = Database(f"sqlite:///{tmp_path}/locked.db", TABLE)
    with database.write():
        errors: list[BackendError] = []

        def other() -> None:
            with pytest.raises(BackendError) as caught, database.write():
                raise AssertionError("the lock is held")
            errors.append(caught.value)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "BUSY" in str(errors[0])
    assert "another process has kept it locked" in str(errors[0])
    with database.write() as connection:
        connection.execute("INSERT INTO t VALUES (1)")


def test_a_full_disk_writes_nothing_and_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/full.db", TABLE)
    with database.write() as connection:
        connection.execute("PRAGMA max_page_count = 20")  # SQLite's own limit raises the disk's error
    with pytest.raises(BackendError, match=r"FULL.*free some space"), database.write() as connection:
        connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
    with database.read() as connection:
        assert connection.execute("SELECT COUNT(*) FROM t").fetchone() == (0,)


def test_a_write_that_the_system_refuses_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """A process whose files may not grow beyond 300 kB: the real error of the operating system."""
    url = f"sqlite:///{tmp_path}/store.db"
    code = f"""
import resource
from delivery_samples import BUCKETS, SPACES, record, users_of
from vista.delivery.store import open_store
from vista.errors import BackendError
store, users, offset = open_store({url!r}, BUCKETS), users_of(0, 4_000), 0
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    while True:
        batch = users[offset : offset + 200]
        offset = store.apply(0, offset, offset + 200, [record(user) for user in batch]).offset
except BackendError as error:
    print(offset, error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
        env={"PYTHONPATH": f"{root}:{root / 'tests'}"},
    )  # fmt: skip
    offset, message = done.stdout.split(" ", 1)
    assert "the disk failed or is full" in message or "the disk is full" in message
    store = open_store(url, BUCKETS)
    assert store.state(0).offset == int(offset) > 0
    users = users_of(0, 4_000)
    held = store.get_many("sample-c", 1, users)
    assert held[: int(offset)] == [record(user) for user in users[: int(offset)]]
    assert not any(held[int(offset) :]), "nothing beyond the offset"


@pytest.mark.parametrize(
    "open_", [open_catalog, lambda url: open_log(url, 4), lambda url: open_store(url, 4)]
)
@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite:/one-slash", "sqlite:///", "", "catalog.db"])
def test_urls_that_name_no_back_end(open_: object, url: str) -> None:
    with pytest.raises(InputError, match="sqlite:///"):
        open_(url)  # type: ignore[operator]


def test_relative_and_absolute_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///var/store.db", BUCKETS)
    (user,) = users_of(0, 1)
    store.apply(0, 0, 1, [record(user)])
    again = open_store(f"sqlite:///{tmp_path}/var/store.db", BUCKETS)
    assert again.get_many("sample-c", 1, [user]) == [record(user)]


def test_an_exception_inside_a_transaction_rolls_it_back(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db", TABLE)

    def fail() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    with database.read() as connection:
        assert connection.execute("SELECT COUNT(*) FROM t").fetchone() == (0,)
    database.close()
    with database.read() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
