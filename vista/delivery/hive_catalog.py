"""The catalog in a Hive metastore 4: epochs are partitions of the table that SQL reads.

    opened epoch   an entry of the journal, under the space's topic: adding it allocates its number
    published      a partition of `summaries`, added in one step; its parameters are all of `Epoch`
    operation      a release, a withdrawal or a note, with its audit line: swapped into the journal's head in
                   one step, then carried out and kept as an entry of its own

An operation is finished before the next one is swapped in, by whoever comes next if who began it was killed.
So the head never holds more than one, however long the history is.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pymetastore.hive_metastore.ttypes import AlreadyExistsException, NoSuchObjectException, Partition

from vista.config import Frozen
from vista.delivery.address import Address, shown
from vista.delivery.hive_journal import HEAD, Journal, partitions_of
from vista.delivery.hive_schema import JOURNAL, SUMMARIES, is_prepared, make_view, prepare, table
from vista.delivery.hive_thrift import Metastore, context
from vista.delivery.interfaces import AuditLine, Epoch, Release
from vista.delivery.rules import check_current, check_opened, check_published, check_same
from vista.errors import BackendError, InputError

_FIELD = "vista."
_OPERATIONS = "operations"
FEW = 8
"""Operations to read one by one; of more news the whole journal is read at once."""
Kind = TypeVar("Kind", bound=Frozen)


class Operation(Frozen):
    """What an operator did. `release` serves after it; `token` makes it unique."""

    number: int
    token: str
    audit: AuditLine | None = None
    release: Release | None = None
    withdraws: tuple[str, int] | None = None  # space and epoch


class HiveCatalog:
    """See `vista.delivery.interfaces.Catalog`. The first write makes database, tables and view; until then it
    is empty."""

    def __init__(self, url: str) -> None:
        """Raises `InputError` for a URL that is not hive://HOST:PORT/DATABASE, `BackendError`."""
        address = Address.parse(url, options=frozenset())
        if len(address.hosts) != 1 or address.user or not address.name.isidentifier():
            raise InputError(f"catalog URL {shown(url)!r}: write hive://HOST:PORT/DATABASE, and nothing more")
        self._database = address.name.lower()  # as the metastore keeps it
        self._metastore = Metastore(address)
        self._found: Journal | None = None
        self._has_view = False
        self._finished = 0
        self._history: list[Operation] = []
        self._exists()

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
        self._make()
        while True:
            known = self.list_epochs(space)
            same = [one for one in known if one.export_id == export_id]
            if same:
                return same[0]
            opened = Epoch(
                space=space,
                epoch=known[-1].epoch + 1 if known else 1,
                export_id=export_id,
                as_of_us=as_of_us,
                trained_until_us=trained_until_us,
                checkpoint=checkpoint,
                codec=codec,
                buckets=buckets,
            )
            if self._journal.add(_topic(space), opened.epoch, opened.model_dump_json()):
                return opened

    def publish(self, epoch: Epoch) -> Epoch:
        opened = None
        if self._exists():
            self._head()
            opened = self._journal.get(_topic(epoch.space), epoch.epoch)
        kept = None if opened is None else self._read(Epoch, opened)
        check_same(check_opened(kept, epoch.space, epoch.epoch), epoch)
        published = self._add(epoch.model_copy(update={"published": True, "withdrawn": False}))
        check_same(published, epoch)
        return published

    def list_epochs(self, space: str) -> list[Epoch]:
        if not self._exists():
            return []
        self._head()
        # in this order: what is published was opened before, so no number is missing between others
        found = partitions_of(self._metastore, self._database, SUMMARIES, space)
        published = {epoch.epoch: epoch for epoch in map(self._epoch, found)}
        opened = (self._read(Epoch, body) for body in self._journal.all(_topic(space)))
        return [published.get(epoch.epoch, epoch) for epoch in opened]

    def withdraw(self, space: str, epoch: int, audit: AuditLine) -> None:
        opened = {one.epoch: one for one in self.list_epochs(space)}
        check_published(check_opened(opened.get(epoch), space, epoch))
        self._operate(audit, lambda current: current, withdraws=(space, epoch))

    def releases(self) -> list[Release]:
        # an operation that is no release names the one that serves all the same
        named = [operation.release for operation in self._operations()]
        return list({release.id: release for release in named if release is not None}.values())

    def swap_release(self, expected: str | None, new: Release, audit: AuditLine) -> None:
        def swapped(current: Release | None) -> Release:
            check_current(current, expected)
            return new

        self._operate(audit, swapped)

    def audit(self) -> list[AuditLine]:
        return [operation.audit for operation in self._operations() if operation.audit is not None]

    def note(self, audit: AuditLine) -> None:
        self._operate(audit, lambda current: current)

    def close(self) -> None:
        self._metastore.close()

    @property
    def _journal(self) -> Journal:
        assert self._found is not None, "asked of before it is known to be there"
        return self._found

    def _exists(self) -> bool:
        """Whether somebody has made the tables by now. Raises `BackendError`: somebody has dropped one."""
        if self._found is None:
            if is_prepared(self._metastore, self._database):
                self._found = Journal(self._metastore, self._database)
            else:
                self._check_whole()
        return self._found is not None

    def _check_whole(self) -> None:
        """That no table was dropped beside one that is used. The journal is made first, both before the first
        entry: asked in this order, tables that are just being made are never taken for lost."""
        if not self._has(JOURNAL):
            if self._has(SUMMARIES) and not self._has(JOURNAL):
                raise self._lost(JOURNAL, f"{SUMMARIES} is")
            return
        journal = Journal(self._metastore, self._database)
        used = self._read(Operation, journal.head()).number > 0 or not journal.is_empty()
        if used and not self._has(SUMMARIES):
            raise self._lost(SUMMARIES, f"the {JOURNAL} has entries")

    def _has(self, name: str) -> bool:
        return table(self._metastore, self._database, name) is not None

    def _lost(self, name: str, though: str) -> BackendError:
        return BackendError(
            f"{self._metastore.url}: the catalog is damaged: table {name} is not there, though {though}: "
            "restore the metastore's database; without a copy, start anew with another database in the URL"
        )

    def _make(self) -> None:
        if not self._exists():
            first = Operation(number=0, token=_token())
            prepare(self._metastore, self._database, {HEAD: first.model_dump_json()})
            self._found = Journal(self._metastore, self._database)
        elif not self._has_view:
            make_view(self._metastore, self._database)
        self._has_view = True

    def _operate(
        self,
        audit: AuditLine,
        next_release: Callable[[Release | None], Release | None],
        withdraws: tuple[str, int] | None = None,
    ) -> None:
        """Make an operation the head, and carry it out. `next_release` may refuse the current one."""
        self._make()
        token = _token()
        while True:
            text, head = self._head()
            operation = Operation(
                number=head.number + 1,
                token=token,
                audit=audit,
                release=next_release(head.release),
                withdraws=withdraws,
            )
            if self._swap_head(text, operation):
                self._finish(operation, operation.model_dump_json())
                return

    def _swap_head(self, head: str, operation: Operation) -> bool:
        """Whether `operation` came after `head`."""
        if self._journal.swap_head(head, operation.model_dump_json()):
            return True
        # another one did; or this one, but the metastore broke off before it said so
        newest = self._read(Operation, self._journal.head())
        if newest.number > operation.number:
            kept = self._journal.get(_OPERATIONS, operation.number)
            return kept is not None and self._read(Operation, kept) == operation
        return newest == operation

    def _head(self) -> tuple[str, Operation]:
        """The newest operation, carried out, and how it is written. With number 0 there is none yet."""
        text = self._journal.head()
        head = self._read(Operation, text)
        if head.number > self._finished:
            self._finish(head, text)
        return text, head

    def _finish(self, operation: Operation, text: str) -> None:
        """Each step may be repeated, by several at once, also long after others have gone on. It is kept as
        its writer wrote it, which may be a newer one."""
        if self._journal.get(_OPERATIONS, operation.number) is None:
            if operation.withdraws is not None:
                self._hide(*operation.withdraws)
            self._journal.add(_OPERATIONS, operation.number, text)
        self._finished = operation.number

    def _operations(self) -> list[Operation]:
        """All of them; of few new ones only these are read. The head first: what it follows is there."""
        if not self._exists():
            return []
        _, head = self._head()
        known = self._history  # once: another thread may replace it meanwhile, by one as right as this
        new = range(len(known) + 1, head.number + 1)
        if len(new) > FEW:
            found = [self._read(Operation, body) for body in self._journal.all(_OPERATIONS)]
        else:
            bodies = (self._journal.get(_OPERATIONS, number) for number in new)
            found = [*known, *(self._read(Operation, body) for body in bodies if body is not None)]
        self._history = found
        return found

    def _hide(self, space: str, epoch: int) -> None:
        """Mark a published epoch as withdrawn and let SQL find no file of it, in one change."""
        place = self._database, SUMMARIES
        values = [space, str(epoch)]
        try:
            partition = self._metastore.call(
                lambda client: client.get_partition(*place, values), NoSuchObjectException
            )
        except NoSuchObjectException:  # dropped by hand since: nothing is left to hide
            return
        partition.parameters[f"{_FIELD}withdrawn"] = str(True)
        partition.sd.location = self._journal.empty_folder
        self._metastore.call(
            lambda client: client.alter_partition_with_environment_context(*place, partition, context())
        )

    def _add(self, epoch: Epoch) -> Epoch:
        """Publish, or find what is published."""
        summaries = table(self._metastore, self._database, SUMMARIES)
        if summaries is None:
            raise self._lost(SUMMARIES, f"the {JOURNAL} is")
        storage = summaries.sd
        storage.location = _uri(epoch.location)
        partition = Partition(
            values=[epoch.space, str(epoch.epoch)],
            dbName=self._database,
            tableName=SUMMARIES,
            sd=storage,
            parameters={f"{_FIELD}{name}": str(value) for name, value in epoch.model_dump().items()},
        )
        try:
            self._metastore.call(
                lambda client: client.add_partition_with_environment_context(partition, context()),
                AlreadyExistsException,
            )
        except AlreadyExistsException:
            place = self._database, SUMMARIES, partition.values
            return self._epoch(self._metastore.call(lambda client: client.get_partition(*place)))
        return epoch

    def _epoch(self, partition: Partition) -> Epoch:
        kept = partition.parameters
        values = {name: kept[f"{_FIELD}{name}"] for name in Epoch.model_fields if f"{_FIELD}{name}" in kept}
        try:
            return Epoch.model_validate(values)
        except ValidationError as error:
            raise self._damaged(f"partition {'/'.join(partition.values)}", error) from error

    def _read(self, kind: type[Kind], body: str) -> Kind:
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            raise self._damaged("an entry of the journal", error) from error

    def _damaged(self, what: str, error: ValidationError) -> BackendError:
        first = error.errors()[0]
        return BackendError(
            f"{self._metastore.url}: {what} is damaged ({first['loc']}: {first['msg']}): "
            "restore the metastore's database"
        )


def _topic(space: str) -> str:
    return f"opened {space}"


def _token() -> str:
    return uuid.uuid4().hex


def _uri(location: str) -> str:
    """A location as Hive writes it."""
    return location if "://" in location else f"file://{Path(location).absolute()}"
