"""What the embedded back ends share: a SQLite file in WAL mode, durable (`synchronous=FULL`) and usable by
many processes and threads; its errors mapped once.
"""

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from vista.errors import BackendError, InputError, NoLogError

SCHEME = "sqlite:///"
BUSY_TIMEOUT_S = 8.0
"""An error must come within 10 s."""
LAYOUT = 1
"""Kept in the file, so that no other file is taken for one of ours."""

_REMEDIES = {
    "SQLITE_BUSY": "another process has kept it locked: stop that process, or wait and try again",
    "SQLITE_CANTOPEN": "the folder must exist and be writable for this user",
    "SQLITE_READONLY": "the file and its folder must be writable for this user",
    "SQLITE_PERM": "the file and its folder must be writable for this user",
    "SQLITE_FULL": "the disk is full: free some space, then run the command again",
    "SQLITE_IOERR": "the disk failed or is full: check it, then run the command again",
    "SQLITE_NOTADB": "the file is not a SQLite database: move it away or correct the URL",
    "SQLITE_CORRUPT": "the file is damaged: restore a catalog or a log from its copy; move a store away, "
    "it refills from the log",
}


class Database:
    """One SQLite file. Every process and thread has its own connection, opened when first used."""

    def __init__(self, url: str, schema: str) -> None:
        """`schema` is a script of CREATE ... IF NOT EXISTS. Raises `InputError` for a URL without a path."""
        if not url.startswith(SCHEME) or len(url) == len(SCHEME):
            raise InputError(f"URL {url!r}: write sqlite:///relative/path.db or sqlite:////absolute/path.db")
        self.url = url
        self.path = Path(url.removeprefix(SCHEME))
        self._schema = schema
        with closing(sqlite3.connect(":memory:")) as empty:
            empty.executescript(schema)
            self._tables = _tables(empty)
        self._lock = threading.Lock()
        self._connections: dict[tuple[int, int], _Connected] = {}

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that holds the write lock from its start; rolled back on any exception."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One transaction that sees one moment."""
        with self._transaction("BEGIN") as connection:
            yield connection

    def close(self) -> None:
        """Close this process' connections; they open again when used."""
        with self._lock:
            mine = [key for key in self._connections if key[0] == os.getpid()]
            for key in mine:
                self._connections.pop(key).connection.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._mapped():
            connection = self._connection()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        key = (os.getpid(), threading.get_ident())
        with self._lock:
            kept = self._connections.get(key)
            if kept is not None and kept.file != _file(self.path):  # it was deleted or replaced
                self._connections.pop(key).connection.close()
                kept = None
            if kept is None:
                kept = self._connections[key] = self._connect()
            return kept.connection

    def _connect(self) -> "_Connected":
        # in this order: who finds the file missing now can be sure that the other is none of a new file
        left = self.path.with_name(f"{self.path.name}-wal").exists()
        if not self.path.exists():
            if left:
                raise BackendError(
                    f"{self.url} was deleted, but its -wal was left: delete {self.path.name}-wal and "
                    f"{self.path.name}-shm too, or old rows would come back"
                )
            self._create()
        file = _file(self.path)
        connection = self._open(self.path)
        connection.execute("PRAGMA synchronous=FULL")
        known = connection.execute("PRAGMA user_version").fetchone()[0] == LAYOUT
        if not known or _tables(connection) != self._tables:
            connection.close()
            raise BackendError(
                f"{self.url} is a file of another kind or layout: move it away or correct the URL"
            )
        return _Connected(connection, file)

    def _create(self) -> None:
        """Put a whole file in place, or leave the one that another process has put there meanwhile.

        The change to WAL mode does not wait for other connections, so it happens where there are none.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        connection = self._open(unfinished)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(self._schema)
            connection.execute(f"PRAGMA user_version={LAYOUT:d}")
            connection.close()
            with suppress(FileExistsError):
                os.link(unfinished, self.path)
        finally:
            connection.close()
            unfinished.unlink(missing_ok=True)

    def _open(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = cast(str, getattr(error, "sqlite_errorname", type(error).__name__))
            remedy = _REMEDIES.get("_".join(name.split("_")[:2]), "see SQLite's result codes")
            raise BackendError(f"{self.url}: {error} ({name}); {remedy}") from error
        except OSError as error:
            raise BackendError(f"{self.url}: {error}; {_REMEDIES['SQLITE_CANTOPEN']}") from error
        except ValidationError as error:  # the rows that are read back were written from the same classes
            what = error.errors()[0]["msg"]
            raise BackendError(
                f"{self.url}: a row is damaged ({what}); {_REMEDIES['SQLITE_CORRUPT']}"
            ) from error


@dataclass(frozen=True, slots=True)
class _Connected:
    connection: sqlite3.Connection
    file: tuple[int, int] | None


def _tables(connection: sqlite3.Connection) -> frozenset[str]:
    """A catalog, a log and a store differ in these."""
    return frozenset(
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
    )


def _file(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to now."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def fixed_buckets(database: Database, wanted: int | None) -> int:
    """A deployment's bucket count: kept by the first opening, checked by every later one.

    The table `meta(name, value)` holds it. Raises `BackendError` if `wanted` differs, or if it is None and
    nothing is kept.
    """
    with database.read() as connection:
        row = connection.execute("SELECT value FROM meta WHERE name = 'buckets'").fetchone()
    if row is None and wanted is None:
        raise no_log(database.url)
    if row is None:
        with database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('buckets', ?)", (wanted,))
        return fixed_buckets(database, wanted)
    if wanted not in (None, row[0]):
        raise BackendError(
            f"{database.url} has {row[0]} buckets, this run has {wanted}: the count is fixed per deployment; "
            "use another VISTA_HOME, or the same count"
        )
    return cast(int, row[0])


def no_log(url: str) -> NoLogError:
    """There is no log where one must be."""
    return NoLogError(
        f"{url} is empty: run `make run` first, or correct the URL or VISTA_HOME; a log that was lost is "
        "made anew by `python -m vista repair --reason ...`"
    )


def signed(value: int) -> int:
    """A u64 as SQLite's i64.

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    return value - 2**64 if value >= 2**63 else value


def unsigned(value: int) -> int:
    """The u64 that `signed` was given."""
    return value % 2**64
