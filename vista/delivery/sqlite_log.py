"""The embedded log: partitions of records in one SQLite file, and the membership of each region's workers."""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from vista.delivery.assignment import Assignment
from vista.delivery.control import header_of
from vista.delivery.sqlite import Database, fixed_buckets, no_log, signed
from vista.errors import InputError
from vista.summary.record import Control, Header

SESSION_TIMEOUT_S = 3.0
"""A worker that has not polled for so long loses its buckets to the others."""
HEARTBEAT_S = SESSION_TIMEOUT_S / 6

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partitions (
    partition INTEGER PRIMARY KEY, first INTEGER NOT NULL, next INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS records (
    partition INTEGER NOT NULL, offset INTEGER NOT NULL, space_id INTEGER, epoch INTEGER, data BLOB NOT NULL,
    PRIMARY KEY (partition, offset)
);
CREATE TABLE IF NOT EXISTS members (
    region TEXT NOT NULL, member TEXT NOT NULL, seen_s REAL NOT NULL, PRIMARY KEY (region, member)
) WITHOUT ROWID
"""


class SqliteLog:
    """See `vista.delivery.interfaces.Log`.

    Compacted, so that it does not grow for ever: when an epoch's retirement is appended, the records of that
    epoch and of the space's earlier ones are deleted from the partition; offsets then have gaps.
    """

    def __init__(self, url: str, partitions: int | None) -> None:
        self._database = Database(url, _SCHEMA)
        if partitions is None and not self._database.path.exists():
            raise no_log(url)
        self.partitions = fixed_buckets(self._database, partitions)

    def identity(self) -> str:
        with self._database.read() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
        if row is None:  # it is new, or was made before this was kept
            with self._database.write() as connection:
                connection.execute(
                    "INSERT OR IGNORE INTO meta (name, value) VALUES ('identity', ?)", (str(uuid.uuid4()),)
                )
            return self.identity()
        return str(row[0])

    def append(self, partition: int, records: Sequence[bytes]) -> int:
        headers = [header_of(data) for data in records]
        with self._database.write() as connection:
            _, offset = _bounds(connection, self._checked(partition))
            for header in headers:
                if header is not None and header.control is Control.RETIRE:
                    connection.execute(
                        "DELETE FROM records WHERE partition = ? AND space_id = ? AND epoch <= ?",
                        (partition, signed(header.space_id), header.epoch),
                    )
            connection.executemany(
                "INSERT INTO records (partition, offset, space_id, epoch, data) VALUES (?, ?, ?, ?, ?)",
                [
                    (partition, offset + index, *_compaction_key(header), data)
                    for index, (header, data) in enumerate(zip(headers, records, strict=True))
                ],
            )
            after = offset + len(records)
            connection.execute(
                "INSERT INTO partitions (partition, first, next) VALUES (?, 0, ?) "
                "ON CONFLICT (partition) DO UPDATE SET next = excluded.next",
                (partition, after),
            )
        return after

    def broadcast(self, partitions: Iterable[int], record: bytes) -> None:
        for partition in partitions:  # each by itself: a retirement deletes records, and nobody waits long
            self.append(partition, [record])

    def read(self, partition: int, offset: int, max_bytes: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        size = 0
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT offset, data FROM records WHERE partition = ? AND offset >= ? ORDER BY offset",
                (self._checked(partition), offset),
            )
            for at, data in rows:
                size += len(data)
                if found and size > max_bytes:
                    break
                found.append((at, data))
            rows.close()
        return found

    def bounds(self, partition: int) -> tuple[int, int]:
        with self._database.read() as connection:
            return _bounds(connection, self._checked(partition))

    def subscribe(
        self,
        region: str,
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> "SqliteSubscription":
        return SqliteSubscription(self._database, self.partitions, region, on_assigned, on_revoked)

    def close(self) -> None:
        self._database.close()

    def _checked(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise InputError(f"partition {partition} does not exist: the log has 0 .. {self.partitions - 1}")
        return partition


class SqliteSubscription:
    """A worker's membership: the live members of a region share its buckets in order of their names."""

    def __init__(
        self,
        database: Database,
        partitions: int,
        region: str,
        on_assigned: Callable[[Iterable[int]], None],
        on_revoked: Callable[[Iterable[int]], None],
    ) -> None:
        self._database, self._partitions, self._region = database, partitions, region
        self._assignment = Assignment(on_assigned, on_revoked)
        self._member = uuid.uuid4().hex
        self._polled_s = 0.0

    def poll(self) -> None:
        """Say that this worker lives, and take what the live members' count leaves it."""
        if time.monotonic() - self._polled_s < HEARTBEAT_S:
            return
        self._polled_s, now_s = time.monotonic(), time.time()
        with self._database.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO members (region, member, seen_s) VALUES (?, ?, ?)",
                (self._region, self._member, now_s),
            )
            connection.execute(  # of the future: the clock was set back, its member comes again if it lives
                "DELETE FROM members WHERE seen_s NOT BETWEEN ? AND ?", (now_s - SESSION_TIMEOUT_S, now_s)
            )
            rows = connection.execute(
                "SELECT member FROM members WHERE region = ? ORDER BY member", (self._region,)
            ).fetchall()
        members = [member for (member,) in rows]
        self._assignment.change(range(members.index(self._member), self._partitions, len(members)))

    def close(self) -> None:
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM members WHERE region = ? AND member = ?", (self._region, self._member)
            )
        self._assignment.change(())


def _bounds(connection: sqlite3.Connection, partition: int) -> tuple[int, int]:
    row = connection.execute(
        "SELECT first, next FROM partitions WHERE partition = ?", (partition,)
    ).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def _compaction_key(header: Header | None) -> tuple[int, int] | tuple[None, None]:
    """What a retirement deletes by; nothing for control records and for bytes that are no record."""
    if header is None or header.control:
        return None, None
    return signed(header.space_id), header.epoch
