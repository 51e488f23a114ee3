"""Sources: where events come from. A source is a module with two functions.

`describe(config: DataConfig) -> SourceInfo` says what the source's bits and columns mean, before any event is
read; `read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]` gives its rows. A batch holds:

- the columns of EVENT_SCHEMA. Rows come in arrival order (file order); they need not be sorted, and `seq` is
  -1: the preparation numbers them per user as they arrive;
- `context_<name>` int32 for each of `SourceInfo.context`: 0 is unknown;
- `label_<task>` uint8 for each of `SourceInfo.tasks`: 0, 1, or 255 for a row that is history only. A row with
  a label is a candidate and an event;
- optionally `candidate_only` bool (absent: false): a candidate that never happened, such as a sampled
  negative; it has labels but belongs to no history. It comes before the events of the same time;
- optionally `source_date` int32, YYYYMMDD: the day under which the source's files list the row, which public
  splits go by. It is no feature, and it need not be the day of `event_time_us`.

A reader rejects bad rows, counts what it read in `rejects.rows`, and after its last batch raises
`RejectedDataError` if too many were bad, and `InputError` if there was nothing to read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

import polars as pl
import pyarrow as pa

from vista.config import DataConfig, Frozen, SourceName
from vista.data.clocks import user_fraction
from vista.data.rejects import Rejects
from vista.data.schema import ContextColumn


class SourceInfo(Frozen):
    """What a source's rows mean: bit i of `action_mask` is `actions[i]`. A source that knows positives only
    asks for `negatives_per_positive` sampled ones."""

    actions: tuple[str, ...]
    context: tuple[ContextColumn, ...]
    tasks: tuple[str, ...]
    negatives_per_positive: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A source by the name of its module, which is imported when it is first used."""

    module: str

    def describe(self, config: DataConfig) -> SourceInfo:
        info: SourceInfo = import_module(self.module).describe(config)
        return info

    def read(self, config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        """The rows of the module's reader, with `config.clock` applied (which holds all rows at once)."""
        batches: Iterator[pa.RecordBatch] = import_module(self.module).read(config, rejects)
        if config.clock == "event_time":
            return batches
        return _on_virtual_time(batches)


def _on_virtual_time(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    table = pa.Table.from_batches(list(batches))
    used = [name for name in ("user_id", "event_time_us", "candidate_only") if name in table.column_names]
    times = user_fraction(pl.DataFrame(table.select(used)))
    column = times["event_time_us"].to_arrow()
    place = table.schema.get_field_index("event_time_us")
    yield from table.set_column(place, table.schema.field(place), column).to_batches()


SOURCES: dict[SourceName, Source] = {
    "generated": Source("vista.data.sources.generated"),
    "kuairand": Source("vista.data.sources.kuairand"),
    "movielens": Source("vista.data.sources.movielens"),
    "amazon_electronics": Source("vista.data.sources.amazon_electronics"),
    "events": Source("vista.data.sources.user_events"),
}
