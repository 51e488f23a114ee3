"""The tables of a catalog in Hive, made by the first write, checked by everybody.

summaries         external, Parquet, partitioned by (space, epoch): a partition is a published epoch, its
                  location the winning attempt, its parameters all of `Epoch`. Any engine may read it.
usable_summaries  a view of it for people: what withdrawn epochs leave out
journal           no files: see vista.delivery.hive_journal
"""

import time
from collections.abc import Callable
from functools import partial

from pymetastore.hive_metastore.ttypes import (
    AlreadyExistsException,
    Database,
    FieldSchema,
    GetTableRequest,
    NoSuchObjectException,
    SerDeInfo,
    StorageDescriptor,
    Table,
)

from vista.delivery.hive_thrift import Metastore
from vista.errors import BackendError

SUMMARIES, VIEW, JOURNAL = "summaries", "usable_summaries", "journal"
COLUMNS = (("user_id", "bigint"), ("seq", "bigint"), ("event_time_us", "bigint"), ("value", "binary"))
PARTITIONED_BY = (("space", "string"), ("epoch", "bigint"))
JOURNAL_COLUMNS = (("nothing", "string"),)
JOURNAL_PARTITIONED_BY = (("topic", "string"), ("number", "bigint"))

_PARQUET = "org.apache.hadoop.hive.ql.io.parquet"
MAKE_S = 4.0
_EXTERNAL, _VIEW = "EXTERNAL_TABLE", "VIRTUAL_VIEW"

Columns = tuple[tuple[str, str], ...]


def is_prepared(metastore: Metastore, database: str) -> bool:
    """Whether all is there but for the view, which holds nothing. Raises `BackendError` for one of another
    schema, naming the difference."""
    whole = True
    for wanted in _tables(database, {}):
        found = table(metastore, database, wanted.tableName)
        if found is not None:
            _check(metastore.url, found, wanted)
        elif wanted.tableName != VIEW:
            whole = False
    return whole


def prepare(metastore: Metastore, database: str, journal_parameters: dict[str, str]) -> None:
    """Make what is absent; several may do so at once. Raises `BackendError` as `is_prepared` does."""
    made = Database(name=database, description="summaries of user histories", parameters={})
    _make(metastore, made, partial(_database, metastore, database))
    for wanted in _tables(database, journal_parameters):
        _make(metastore, wanted, partial(table, metastore, database, wanted.tableName))
    if not is_prepared(metastore, database):
        raise BackendError(f"{metastore.url}: a table was dropped while it was made: run the command again")


def make_view(metastore: Metastore, database: str) -> None:
    """Make the view if it is not there: who made the tables may have been killed, or somebody dropped it."""
    _make(metastore, _view(database), partial(table, metastore, database, VIEW))


def table(metastore: Metastore, database: str, name: str) -> Table | None:
    """A table as the metastore holds it, or None."""
    request = GetTableRequest(dbName=database, tblName=name)
    try:
        return metastore.call(lambda client: client.get_table_req(request), NoSuchObjectException).table
    except NoSuchObjectException:
        return None


def _database(metastore: Metastore, name: str) -> Database | None:
    try:
        return metastore.call(lambda client: client.get_database(name), NoSuchObjectException)
    except NoSuchObjectException:
        return None


def _make(metastore: Metastore, what: Database | Table, found: Callable[[], object]) -> None:
    """Unless it is there. Of several who make a table at once all may get errors: the metastore deletes the
    folder of one that it refuses, also if another's is in it."""
    end_s = time.monotonic() + MAKE_S
    while found() is None:
        try:
            if isinstance(what, Database):
                metastore.call(lambda client: client.create_database(what), AlreadyExistsException)
            else:
                metastore.call(lambda client: client.create_table(what), AlreadyExistsException)
        except AlreadyExistsException:
            return  # made meanwhile, by somebody else or by the first try of this call
        except BackendError:
            if time.monotonic() > end_s:
                raise


def _check(url: str, found: Table, wanted: Table) -> None:
    name = wanted.tableName
    remedy = "drop or rename it, or name another database in the URL"
    if found.tableType != wanted.tableType:
        raise BackendError(f"{url}: {name} is a {found.tableType}, not a {wanted.tableType}: {remedy}")
    for what, has, wants in (
        ("columns", found.sd.cols, wanted.sd.cols),
        ("partition columns", found.partitionKeys, wanted.partitionKeys),
    ):
        has_types, wanted_types = _types(has), _types(wants)
        if has_types != wanted_types:
            raise BackendError(
                f"{url}: table {name} is of another schema: its {what} are ({has_types}), not "
                f"({wanted_types}); {remedy}"
            )
    if found.sd.inputFormat != wanted.sd.inputFormat:
        raise BackendError(f"{url}: table {name} is read by {found.sd.inputFormat}, not Parquet: {remedy}")


def _types(fields: list[FieldSchema]) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in fields or ())


def _fields(columns: Columns) -> list[FieldSchema]:
    return [FieldSchema(name, kind) for name, kind in columns]


def _external(
    database: str, name: str, columns: Columns, partitioned_by: Columns, parameters: dict[str, str]
) -> Table:
    """External: dropping the table, or a partition of it, deletes no file."""
    return Table(
        dbName=database,
        tableName=name,
        tableType=_EXTERNAL,
        partitionKeys=_fields(partitioned_by),
        parameters={"EXTERNAL": "TRUE", "external.table.purge": "false", **parameters},
        sd=StorageDescriptor(
            cols=_fields(columns),
            inputFormat=f"{_PARQUET}.MapredParquetInputFormat",
            outputFormat=f"{_PARQUET}.MapredParquetOutputFormat",
            serdeInfo=SerDeInfo(serializationLib=f"{_PARQUET}.serde.ParquetHiveSerDe", parameters={}),
            parameters={},
        ),
    )


def _tables(database: str, journal_parameters: dict[str, str]) -> tuple[Table, ...]:
    return (
        _external(database, JOURNAL, JOURNAL_COLUMNS, JOURNAL_PARTITIONED_BY, journal_parameters),
        _external(database, SUMMARIES, COLUMNS, PARTITIONED_BY, {}),
        _view(database),
    )


def _view(database: str) -> Table:
    names = ", ".join(f"`{name}`" for name, _ in COLUMNS + PARTITIONED_BY)
    query = f"SELECT {names} FROM `{database}`.`{SUMMARIES}`"
    return Table(
        dbName=database,
        tableName=VIEW,
        tableType=_VIEW,
        partitionKeys=[],
        parameters={},
        viewOriginalText=query,
        viewExpandedText=query,
        sd=StorageDescriptor(
            cols=_fields(COLUMNS + PARTITIONED_BY),
            inputFormat="org.apache.hadoop.mapred.TextInputFormat",
            outputFormat="org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat",
            serdeInfo=SerDeInfo(parameters={}),
            parameters={},
        ),
    )
