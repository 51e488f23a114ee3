"""The embedded store of one region: a materialised view of the log in one SQLite file.

The file holds the log's offset per bucket, and `apply` moves offset and records in one transaction.
"""

import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vista.data.schema import bucket_of
from vista.delivery.changes import Barrier, Retirement, Unusable, change_of
from vista.delivery.interfaces import (
    LETTERS_AT_ONCE,
    Applied,
    BucketState,
    DeadLetter,
    EpochState,
    Release,
)
from vista.delivery.sqlite import Database, fixed_buckets, signed, unsigned
from vista.summary.record import Header, keys_digest, space_id

RETIRE_SLICE = 1_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS offsets (bucket INTEGER PRIMARY KEY, offset INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS releases (bucket INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS floors (
    bucket INTEGER NOT NULL, space_id INTEGER NOT NULL, space TEXT NOT NULL, floor INTEGER NOT NULL,
    PRIMARY KEY (bucket, space_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS barriers (
    bucket INTEGER NOT NULL, space_id INTEGER NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY (bucket, space_id, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS summaries (
    bucket INTEGER NOT NULL, space_id INTEGER NOT NULL, epoch INTEGER NOT NULL, user_id INTEGER NOT NULL,
    seq INTEGER NOT NULL, tombstone INTEGER NOT NULL, crc INTEGER NOT NULL, as_of_us INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (bucket, space_id, epoch, user_id)
);
CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, bucket INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    reason TEXT NOT NULL, data BLOB NOT NULL
)
"""


class SqliteStore:
    """See `vista.delivery.interfaces.Store`."""

    def __init__(self, url: str, buckets: int) -> None:
        self._database = Database(url, _SCHEMA)
        self._wanted_buckets = buckets

    @cached_property
    def _buckets(self) -> int:
        return fixed_buckets(self._database, self._wanted_buckets)

    def apply(
        self,
        bucket: int,
        expected_offset: int,
        next_offset: int,
        records: Sequence[bytes],
        log: str = "",
        *,
        new_log: bool = False,
    ) -> Applied:
        buckets = self._buckets
        with self._database.write() as connection:
            stored = _offset(connection, bucket)
            kept = _log(connection, bucket)
            if stored != expected_offset or (log and kept not in ("", log) and not new_log):
                return Applied(accepted=False, offset=stored)
            batch = _Batch(connection, bucket, buckets, next_offset)
            for data in records:
                batch.take(data)
            connection.execute(
                "INSERT OR REPLACE INTO offsets (bucket, offset) VALUES (?, ?)", (bucket, next_offset)
            )
            if log and log != kept:
                connection.execute(
                    "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (f"log:{bucket}", log)
                )
            return Applied(
                accepted=True,
                offset=next_offset,
                retirements=tuple(batch.retirements),
                **batch.counts,
            )

    def get_many(self, space: str, epoch: int, users: Sequence[int]) -> list[bytes | None]:
        space_key, buckets = signed(space_id(space)), self._buckets
        found: list[bytes | None] = []
        with self._database.read() as connection:
            for user in users:
                bucket = bucket_of(user, buckets)
                row = connection.execute(
                    "SELECT data FROM summaries WHERE bucket = ? AND space_id = ? AND epoch = ? "
                    "AND user_id = ? AND NOT tombstone AND NOT EXISTS (SELECT 1 FROM floors "
                    "WHERE bucket = ? AND space_id = ? AND floor > ?)",
                    (bucket, space_key, epoch, user, bucket, space_key, epoch),
                ).fetchone()
                found.append(None if row is None else row[0])
        return found

    def state(self, bucket: int, *, reading: bool = False) -> BucketState:
        with self._database.read() as connection:
            release = connection.execute("SELECT body FROM releases WHERE bucket = ?", (bucket,)).fetchone()
            floors = connection.execute(
                "SELECT space_id, space, floor FROM floors WHERE bucket = ?", (bucket,)
            ).fetchall()
            found = BucketState(
                offset=_offset(connection, bucket),
                release=None if release is None else Release.model_validate_json(release[0]),
                floors={space: floor for _, space, floor in floors},
                epochs=_epochs(connection, bucket, {key: floor for key, _, floor in floors}),
                free_bytes=shutil.disk_usage(self._database.path.parent).free,
                log=_log(connection, bucket),
            )
        if not found.offset:  # perhaps the file was deleted, and the number of buckets with it
            fixed_buckets(self._database, self._wanted_buckets)
        return found

    def retire(self, space: str, epoch: int, at_most: int | None = None, bucket: int | None = None) -> int:
        deleted = 0
        while True:  # in slices, so that `apply` is never kept waiting long
            with self._database.write() as connection:
                count = connection.execute(
                    "DELETE FROM summaries WHERE rowid IN (SELECT s.rowid FROM summaries s JOIN floors f "
                    "ON f.bucket = s.bucket AND f.space_id = s.space_id "
                    "WHERE s.space_id = ? AND s.epoch <= ? AND s.epoch < f.floor "
                    "AND f.bucket = coalesce(?, f.bucket) LIMIT ?)",
                    (signed(space_id(space)), epoch, bucket, RETIRE_SLICE),
                ).rowcount
            deleted += count
            if count < RETIRE_SLICE or (at_most is not None and deleted >= at_most):
                return deleted

    def count_dead_letters(self, bucket: int) -> int:
        with self._database.read() as connection:
            (count,) = connection.execute(
                "SELECT COUNT(*) FROM dead_letters WHERE bucket = ?", (bucket,)
            ).fetchone()
            return int(count)

    def dead_letters(self, bucket: int, after: DeadLetter | None = None) -> list[DeadLetter]:
        behind = 0 if after is None else int(after.id)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT CAST(number AS TEXT), bucket, next_offset, reason, data FROM dead_letters "
                "WHERE bucket = ? AND number > ? ORDER BY number LIMIT ?",
                (bucket, behind, LETTERS_AT_ONCE),
            ).fetchall()
        return [DeadLetter(*row) for row in rows]

    def delete_dead_letters(self, bucket: int, letters: Sequence[DeadLetter]) -> int:
        with self._database.write() as connection:
            return sum(
                connection.execute(  # in a store that was made anew a number may be another letter's
                    "DELETE FROM dead_letters WHERE number = ? AND bucket = ? AND data = ?",
                    (int(letter.id), bucket, letter.data),
                ).rowcount
                for letter in letters
            )

    def close(self) -> None:
        self._database.close()


@dataclass
class _Batch:
    """The records of one `apply`, within its transaction."""

    connection: sqlite3.Connection
    bucket: int
    buckets: int
    next_offset: int
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("written", "older", "conflicts", "retired", "dead_letters"), 0)
    )
    retirements: list[tuple[str, int]] = field(default_factory=list)

    def take(self, data: bytes) -> None:
        """Apply one record, or keep it as a dead letter."""
        change = change_of(data, self.bucket, self.buckets)
        match change:
            case Header():
                self._summary(change, data)
            case Release():
                self.connection.execute(
                    "INSERT OR REPLACE INTO releases (bucket, body) VALUES (?, ?)",
                    (self.bucket, change.model_dump_json()),
                )
            case Barrier():
                self._barrier(change)
            case Retirement():
                self._retirement(change)
            case Unusable():
                self.counts["dead_letters"] += 1
                self.connection.execute(
                    "INSERT INTO dead_letters (bucket, next_offset, reason, data) VALUES (?, ?, ?, ?)",
                    (self.bucket, self.next_offset, change.reason, data),
                )

    def _summary(self, header: Header, data: bytes) -> None:
        if header.epoch < self._floor(header.space_id):
            self.counts["retired"] += 1
            return
        key = (self.bucket, signed(header.space_id), header.epoch, header.user_id)
        kept = self.connection.execute(
            "SELECT seq, tombstone, crc FROM summaries "
            "WHERE bucket = ? AND space_id = ? AND epoch = ? AND user_id = ?",
            key,
        ).fetchone()
        if kept is not None and kept[0] == header.seq and kept[2] != header.crc:
            self.counts["conflicts"] += 1
        if kept is not None and header.order <= kept:
            self.counts["older"] += 1
            return
        self.counts["written"] += 1
        self.connection.execute(
            "INSERT OR REPLACE INTO summaries "
            "(bucket, space_id, epoch, user_id, seq, tombstone, crc, as_of_us, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*key, header.seq, header.tombstone, header.crc, header.as_of_us, data),
        )

    def _barrier(self, barrier: Barrier) -> None:
        if barrier.epoch < self._floor(barrier.space_id):
            self.counts["retired"] += 1
            return
        self.connection.execute(
            "INSERT OR IGNORE INTO barriers (bucket, space_id, epoch) VALUES (?, ?, ?)",
            (self.bucket, signed(barrier.space_id), barrier.epoch),
        )

    def _retirement(self, retirement: Retirement) -> None:
        self.connection.execute(
            "INSERT INTO floors (bucket, space_id, space, floor) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (bucket, space_id) DO UPDATE SET floor = MAX(floor, excluded.floor)",
            (self.bucket, signed(retirement.space_id), retirement.space, retirement.epoch + 1),
        )
        self.retirements.append((retirement.space, retirement.epoch))

    def _floor(self, space: int) -> int:
        row = self.connection.execute(
            "SELECT floor FROM floors WHERE bucket = ? AND space_id = ?", (self.bucket, signed(space))
        ).fetchone()
        return 0 if row is None else int(row[0])


def _offset(connection: sqlite3.Connection, bucket: int) -> int:
    row = connection.execute("SELECT offset FROM offsets WHERE bucket = ?", (bucket,)).fetchone()
    return 0 if row is None else int(row[0])


def _log(connection: sqlite3.Connection, bucket: int) -> str:
    """Of which log the offset is; a file that was made before this was kept has no row."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (f"log:{bucket}",)).fetchone()
    return "" if row is None else str(row[0])


def _epochs(
    connection: sqlite3.Connection, bucket: int, floors: dict[int, int]
) -> dict[tuple[int, int], EpochState]:
    """What the bucket holds of every epoch that is not retired; `floors` by signed space id."""
    barriers = set(
        connection.execute("SELECT space_id, epoch FROM barriers WHERE bucket = ?", (bucket,)).fetchall()
    )
    oldest = {
        (space, epoch): as_of_us
        for space, epoch, as_of_us in connection.execute(
            "SELECT space_id, epoch, MIN(as_of_us) FROM summaries WHERE bucket = ? GROUP BY space_id, epoch",
            (bucket,),
        )
    }
    states: dict[tuple[int, int], EpochState] = {}
    for space, epoch in barriers | oldest.keys():
        if epoch < floors.get(space, 0):
            continue
        users = [
            user
            for (user,) in connection.execute(
                "SELECT user_id FROM summaries WHERE bucket = ? AND space_id = ? AND epoch = ?",
                (bucket, space, epoch),
            )
        ]
        states[unsigned(space), epoch] = EpochState(
            users=len(users),
            keys_digest=keys_digest(users),
            barrier=(space, epoch) in barriers,
            oldest_as_of_us=oldest.get((space, epoch)),
        )
    return states
