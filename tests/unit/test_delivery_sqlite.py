"""The embedded back ends' failures: each one `BackendError` that names the URL and a remedy."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from delivery_samples import BUCKETS, SPACES, record, users_of

from vista.delivery import sqlite, sqlite_log
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.control import release_record, retirement
from vista.delivery.interfaces import Release
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
    with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO releases (id, body) VALUES ('r-1', '{\"id\": \"r-')")
    with pytest.raises(BackendError, match=r"catalog\.db: a row is damaged .*restore a catalog"):
        catalog.releases()


def test_a_release_that_a_newer_version_wrote_is_read_without_its_new_keys(tmp_path: Path) -> None:
    release = Release(id="r-1", space=SPACES[0], epoch=1, foundation="f", downstream="d")
    newer = json.dumps(release.model_dump() | {"rollout": "half"})
    catalog = open_catalog(f"sqlite:///{tmp_path}/catalog.db")
    store = open_store(f"sqlite:///{tmp_path}/store.db", BUCKETS)
    catalog.swap_release(None, release, audit_line("promote", "me", "better"))
    store.apply(0, 0, 1, [release_record(release)])
    for name in ("catalog", "store"):
        with closing(sqlite3.connect(tmp_path / f"{name}.db", isolation_level=None)) as connection:
            assert connection.execute("UPDATE releases SET body = ?", (newer,)).rowcount == 1
    assert catalog.releases() == [release]
    catalog.swap_release("r-1", release.model_copy(update={"id": "r-2"}), audit_line("promote", "me", "on"))
    assert store.state(0).release == release


def test_the_log_deletes_what_is_retired(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path}/log.db", BUCKETS)
    (user,) = users_of(3, 1)
    log.append(3, [record(user, epoch=1), record(user, epoch=3), record(user, epoch=2)])
    log.append(3, [retirement(SPACES[0], 2)])
    assert log.read(3, 0, 10**6) == [(1, record(user, epoch=3)), (3, retirement(SPACES[0], 2))]


def test_a_file_that_was_deleted_or_replaced_is_not_written_to_any_more(tmp_path: Path) -> None:
    """An operator empties a store by deleting its files, whoever has them open."""
    url, (user, other) = f"sqlite:///{tmp_path}/store.db", users_of(0, 2)
    worker, reader = open_store(url, BUCKETS), open_store(url, BUCKETS)
    worker.apply(0, 0, 5, [record(user)])
    assert reader.get_many(SPACES[0], 1, [user]) == [record(user)]
    for path in tmp_path.glob("store.db*"):
        path.unlink()
    assert reader.get_many(SPACES[0], 1, [user]) == [None]
    assert (worker.apply(0, 5, 6, []).accepted, worker.state(0).offset) == (False, 0)
    assert worker.apply(0, 0, 1, [record(other)]).accepted
    assert reader.get_many(SPACES[0], 1, [user, other]) == [None, record(other)]
    assert open_store(url, BUCKETS).state(0).offset == 1


def test_a_file_that_was_deleted_without_its_journal_is_refused(tmp_path: Path) -> None:
    url, (user,) = f"sqlite:///{tmp_path}/store.db", users_of(0, 1)
    store = open_store(url, BUCKETS)
    store.apply(0, 0, 5, [record(user)])
    (tmp_path / "store.db").unlink()
    for one in (store, open_store(url, BUCKETS)):
        with pytest.raises(
            BackendError, match=r"store\.db was deleted, but its -wal was left: delete .*-shm too"
        ):
            one.state(0)
    for path in tmp_path.glob("store.db*"):
        path.unlink()
    assert store.state(0).offset == 0


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    for use in (
        lambda url: open_catalog(url).releases(),
        lambda url: open_log(url),
        lambda url: open_log(url, BUCKETS),
        lambda url: open_store(url, BUCKETS).state(0),
    ):
        with pytest.raises(
            BackendError, match=r"other\.db is a file of another kind or layout: move it away"
        ):
            use(f"sqlite:///{tmp_path}/other.db")


def test_a_catalog_a_log_and_a_store_are_not_taken_for_each_other(tmp_path: Path) -> None:
    catalog, log, store = (f"sqlite:///{tmp_path}/{name}.db" for name in ("catalog", "log", "store"))
    open_catalog(catalog).note(audit_line("freeze", "me", "the first write makes the file"))
    open_log(log, BUCKETS)
    open_store(store, BUCKETS).state(0)
    for other in (log, store):
        with pytest.raises(BackendError, match=f"{other} is a file of another kind"):
            open_catalog(other).releases()
    for other in (catalog, store):
        with pytest.raises(BackendError, match=f"{other} is a file of another kind"):
            open_log(other, BUCKETS)
    for other in (catalog, log):
        with pytest.raises(BackendError, match=f"{other} is a file of another kind"):
            open_store(other, BUCKETS).state(0)


def test_a_database_that_another_process_keeps_locked_is_an_error_in_time(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db", BUCKETS)
    assert store.state(0).offset == 0
    hold = "c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print(1, flush=True); input()"
    command = [sys.executable, "-c", f"import sqlite3, sys; {hold}", str(tmp_path / "store.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        started_s = time.monotonic()
        with pytest.raises(BackendError, match="another process has kept it locked"):
            store.apply(0, 0, 1, [])
        assert time.monotonic() - started_s < 10.0
        assert store.state(0).offset == 0, "it can be read"
        holder.communicate("")
    assert store.apply(0, 0, 1, []).accepted


def test_a_user_without_permission_is_told_of_the_folder(servers_place: Path) -> None:
    place = servers_place / "others"
    place.mkdir()
    store = open_store(f"sqlite:///{place}/store.db", BUCKETS)
    store.apply(0, 0, 1, [])
    store.close()
    code = f"""
import os
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.errors import BackendError
os.chmod({str(place)!r}, 0o555)
if os.getuid() == 0:
    os.setuid(65534)
url = "sqlite:///{place}/"
for use in (
    lambda: open_log(url + "log.db", 4), lambda: open_store(url + "store.db", 4).apply(0, 1, 2, []),
    lambda: open_catalog(url + "catalog.db").note(audit_line("freeze", "me", "why")),
):
    try:
        use()
    except BackendError as error:
        print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
        env={"PYTHONPATH": str(root)},
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert len(said) == 3
    assert all("writable for this user" in line and str(place) in line for line in said)


def test_a_clock_that_is_set_back_leaves_no_bucket_without_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(f"sqlite:///{tmp_path}/log.db", BUCKETS)
    now_s = [time.time()]
    monkeypatch.setattr(sqlite_log, "time", SimpleNamespace(time=lambda: now_s[0], monotonic=time.monotonic))
    monkeypatch.setattr(sqlite_log, "HEARTBEAT_S", 0.0)
    held: dict[str, set[int]] = {"killed": set(), "lives": set()}
    killed, lives = (
        log.subscribe("east", held[name].update, held[name].difference_update) for name in ("killed", "lives")
    )
    for _ in range(2):
        for one in (killed, lives):
            one.poll()
    assert len(held["killed"]) == len(held["lives"]) == BUCKETS / 2
    now_s[0] -= 3_600
    lives.poll()
    assert held["lives"] == set(range(BUCKETS)), "the killed one's sign of life is an hour ahead"
    for _ in range(2):
        for one in (killed, lives):
            one.poll()
    assert held["killed"] | held["lives"] == set(range(BUCKETS))
    assert not held["killed"] & held["lives"], "it was not killed after all"


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
