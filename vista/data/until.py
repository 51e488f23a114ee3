"""What a run may read: the events until the end of one day, as if it had begun then."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from vista.config import DataConfig
from vista.errors import InputError


@dataclass(slots=True)
class Until:
    """Rows before `end_us`, or all of them; counts what it lets pass, and remembers the first event."""

    day: str
    end_us: int | None
    rows: int = 0
    first_us: int | None = None

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Raises `InputError` for a day that is none, and for clocks on which days mean nothing."""
        if not data.until:
            return cls("", None)
        if data.clock != "event_time":
            raise InputError(f"until {data.until}: the clock {data.clock!r} has no dates: leave until out")
        try:
            after = date.fromisoformat(data.until) + timedelta(days=1)
        except ValueError as error:
            raise InputError(f"until {data.until!r}: {error}: write a date as YYYY-MM-DD") from error
        midnight_us = int(datetime(after.year, after.month, after.day, tzinfo=UTC).timestamp()) * 1_000_000
        return cls(data.until, midnight_us - data.day_offset_s * 1_000_000)

    def rows_of(self, chunk: pa.Table) -> pa.Table:
        """The rows of a chunk that may be read."""
        if self.end_us is None or not chunk.num_rows:
            return chunk
        first_us = pc.min(chunk["event_time_us"]).as_py()
        self.first_us = first_us if self.first_us is None else min(first_us, self.first_us)
        kept = chunk.filter(pc.less(chunk["event_time_us"], self.end_us))
        self.rows += kept.num_rows
        return kept

    def check(self) -> None:
        """Raises `InputError` if nothing was left of some rows."""
        if self.first_us is not None and not self.rows:
            first = datetime.fromtimestamp(self.first_us / 1e6, UTC)
            raise InputError(
                f"until {self.day}: the first event is of {first:%Y-%m-%d %H:%M} UTC: name a later day"
            )
