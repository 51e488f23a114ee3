"""The embedded catalog: epochs, releases and the audit in one SQLite file."""

import sqlite3
from typing import Any

from vista.delivery.interfaces import AuditLine, Epoch, Release
from vista.delivery.rules import check_current, check_opened, check_published, check_same
from vista.delivery.sqlite import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epochs (
    space TEXT NOT NULL, epoch INTEGER NOT NULL, export_id TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (space, epoch), UNIQUE (space, export_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS audit (number INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL)
"""


class SqliteCatalog:
    """See `vista.delivery.interfaces.Catalog`. The first write makes the file; until then it is empty."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, _SCHEMA)

    def open_epoch(
        self,
        *,
        space: str,
        export_id: str,
        as_of_us: int,
        trained_until_us: int,
        checkpoint: str,
        codec: str,
        buckets: int,
    ) -> Epoch:
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT body FROM epochs WHERE space = ? AND export_id = ?", (space, export_id)
            ).fetchone()
            if row is not None:
                return Epoch.model_validate_json(row[0])
            (last,) = connection.execute("SELECT MAX(epoch) FROM epochs WHERE space = ?", (space,)).fetchone()
            opened = Epoch(
                space=space,
                epoch=(last or 0) + 1,
                export_id=export_id,
                as_of_us=as_of_us,
                trained_until_us=trained_until_us,
                checkpoint=checkpoint,
                codec=codec,
                buckets=buckets,
            )
            connection.execute(
                "INSERT INTO epochs (space, epoch, export_id, body) VALUES (?, ?, ?, ?)",
                (space, opened.epoch, export_id, opened.model_dump_json()),
            )
            return opened

    def publish(self, epoch: Epoch) -> Epoch:
        with self._database.write() as connection:
            kept = _epoch(connection, epoch.space, epoch.epoch)
            check_same(kept, epoch)
            if kept.published:
                return kept
            published = epoch.model_copy(update={"published": True, "withdrawn": False})
            _keep(connection, published)
            return published

    def list_epochs(self, space: str) -> list[Epoch]:
        if not self._database.path.exists():
            return []
        with self._database.read() as connection:
            rows = connection.execute("SELECT body FROM epochs WHERE space = ? ORDER BY epoch", (space,))
            return [Epoch.model_validate_json(body) for (body,) in rows]

    def withdraw(self, space: str, epoch: int, audit: AuditLine) -> None:
        with self._database.write() as connection:
            kept = _epoch(connection, space, epoch)
            check_published(kept)
            _keep(connection, kept.model_copy(update={"withdrawn": True}))
            _note(connection, audit)

    def releases(self) -> list[Release]:
        if not self._database.path.exists():
            return []
        with self._database.read() as connection:
            rows: list[Any] = connection.execute("SELECT body FROM releases ORDER BY number").fetchall()
            return [Release.model_validate_json(body) for (body,) in rows]

    def swap_release(self, expected: str | None, new: Release, audit: AuditLine) -> None:
        with self._database.write() as connection:
            row = connection.execute("SELECT body FROM releases ORDER BY number DESC LIMIT 1").fetchone()
            check_current(None if row is None else Release.model_validate_json(row[0]), expected)
            connection.execute(
                "INSERT INTO releases (id, body) VALUES (?, ?)", (new.id, new.model_dump_json())
            )
            _note(connection, audit)

    def audit(self) -> list[AuditLine]:
        if not self._database.path.exists():
            return []
        with self._database.read() as connection:
            rows = connection.execute("SELECT body FROM audit ORDER BY number").fetchall()
            return [AuditLine.model_validate_json(body) for (body,) in rows]

    def note(self, audit: AuditLine) -> None:
        with self._database.write() as connection:
            _note(connection, audit)

    def close(self) -> None:
        self._database.close()


def _epoch(connection: sqlite3.Connection, space: str, epoch: int) -> Epoch:
    row = connection.execute(
        "SELECT body FROM epochs WHERE space = ? AND epoch = ?", (space, epoch)
    ).fetchone()
    return check_opened(None if row is None else Epoch.model_validate_json(row[0]), space, epoch)


def _keep(connection: sqlite3.Connection, epoch: Epoch) -> None:
    connection.execute(
        "UPDATE epochs SET body = ? WHERE space = ? AND epoch = ?",
        (epoch.model_dump_json(), epoch.space, epoch.epoch),
    )


def _note(connection: sqlite3.Connection, audit: AuditLine) -> None:
    connection.execute("INSERT INTO audit (body) VALUES (?)", (audit.model_dump_json(),))
