"""What a metastore can do in one step, made into two things that a catalog can be built of.

Entries: numbered from 1 within a topic, never changed or removed. Each is a partition of the table `journal`,
which has no files; adding a partition is refused if it is there already. They may be many.

Head: one text, swapped for another if it is still the expected one: the compare-and-swap on a table
parameter that the metastore makes in its database (`expected_parameter_key`). It must never hold the same
text twice. Of the metastore's other changes none compares: the last one wins.
"""

from pymetastore.hive_metastore.ttypes import (
    AlreadyExistsException,
    MetaException,
    NoSuchObjectException,
    Partition,
    Table,
)

from vista.delivery.hive_schema import JOURNAL, table
from vista.delivery.hive_thrift import Metastore, context
from vista.errors import BackendError

HEAD = "vista.head"
_BODY = "vista.body"
_PARAMETER_CHARACTERS = 4_000
"""Of a partition's parameter, in PostgreSQL and others; a table's has no limit."""

_OTHER_VALUE = "The table has been modified"
"""How the metastore says that a parameter is not what was expected. It has no exception of its own."""


class Journal:
    """The table `journal` of a database; `vista.delivery.hive_schema.prepare` has made it."""

    def __init__(self, metastore: Metastore, database: str) -> None:
        self._metastore, self._database = metastore, database
        self._table = self._read_table()
        self.empty_folder: str = self._table.sd.location

    def add(self, topic: str, number: int, body: str) -> bool:
        """Add an entry; False if the number is taken, perhaps by the first try of this call."""
        parts = [body[i : i + _PARAMETER_CHARACTERS] for i in range(0, len(body), _PARAMETER_CHARACTERS)]
        entry = Partition(
            values=[topic, str(number)],
            dbName=self._database,
            tableName=JOURNAL,
            sd=self._table.sd,
            parameters={f"{_BODY}.{place}": part for place, part in enumerate(parts)},
        )
        try:
            self._metastore.call(
                lambda client: client.add_partition_with_environment_context(entry, context()),
                AlreadyExistsException,
            )
        except AlreadyExistsException:
            return False
        return True

    def get(self, topic: str, number: int) -> str | None:
        """An entry's body, or None."""
        place = self._database, JOURNAL, [topic, str(number)]
        try:
            found = self._metastore.call(lambda client: client.get_partition(*place), NoSuchObjectException)
        except NoSuchObjectException:
            return None
        return _body(found)

    def all(self, topic: str) -> list[str]:
        """The bodies of a topic's entries, by number."""
        found = partitions_of(self._metastore, self._database, JOURNAL, topic)
        return [_body(one) for one in sorted(found, key=lambda one: int(one.values[1]))]

    def is_empty(self) -> bool:
        """Whether no topic has an entry."""
        place = self._database, JOURNAL, 1
        return not self._metastore.call(lambda client: client.get_partition_names(*place))

    def head(self) -> str:
        """The head now."""
        head: str = self._read_table().parameters[HEAD]
        return head

    def swap_head(self, expected: str, new: str) -> bool:
        """Make `new` the head if it is `expected`.

        False if it was another one, which includes `new`: the first try of this call may have been done.
        """
        changed = self._read_table()
        if changed.parameters[HEAD] != expected:
            return False
        changed.parameters[HEAD] = new
        place = self._database, JOURNAL, changed
        condition = context(expected_parameter_key=HEAD, expected_parameter_value=expected)
        try:
            self._metastore.call(
                lambda client: client.alter_table_with_environment_context(*place, condition), MetaException
            )
        except MetaException as error:
            if _OTHER_VALUE in (error.message or ""):
                return False
            raise BackendError(
                f"{self._metastore.url}: the metastore refused to swap ({error.message}): its log says why; "
                "a metastore on Derby never can"
            ) from error
        return True

    def _read_table(self) -> Table:
        found = table(self._metastore, self._database, JOURNAL)
        if found is None or HEAD not in found.parameters:
            raise BackendError(
                f"{self._metastore.url}: table {JOURNAL} was dropped or made by others: restore the "
                "metastore's database, or name another database in the URL"
            )
        return found


def partitions_of(metastore: Metastore, database: str, name: str, first_value: str) -> list[Partition]:
    """The partitions of a table of two partition columns whose first one has this value."""
    place = database, name, [first_value], -1
    found = metastore.call(lambda client: client.get_partitions_ps(*place))
    # the metastore matches names, in which some characters are wild
    return [one for one in found if one.values[0] == first_value]


def _body(entry: Partition) -> str:
    parts = (entry.parameters.get(f"{_BODY}.{place}") for place in range(len(entry.parameters)))
    return "".join(part for part in parts if part is not None)
