"""How far a region is behind its log, in records and in seconds, from where the log ended at known times."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the buckets' partitions of the log ended at a time."""

    time_s: float
    by_bucket: Mapping[int, int]

    def passed(self, offsets: Mapping[int, int]) -> bool:
        """Whether the buckets had everything that the log held then."""
        return all(
            bucket in self.by_bucket and self.by_bucket[bucket] <= offset
            for bucket, offset in offsets.items()
        )


@dataclass(slots=True)
class Lag:
    """Samples of the log's ends, back to the newest that every bucket has passed. Of more than `MAX_SAMPLES`
    every second one is forgotten, so seconds are right to one part in 256.

    >>> lag = Lag()
    >>> for time_s, end in ((10.0, 5), (11.0, 9), (12.0, 20)):
    ...     lag.sample(Ends(time_s, {0: end}), {0: 9})
    >>> lag.records({0: 9}), lag.seconds({0: 9}, now_s=12.5)
    (11, 1.5)
    """

    _samples: list[Ends] = field(default_factory=list)
    _gap_s: float = 0.0

    def sample(self, ends: Ends, offsets: Mapping[int, int]) -> None:
        """Take a sample, and forget those that no bucket at `offsets` needs."""
        kept = self._samples
        if len(kept) > 1 and kept[-1].time_s - kept[-2].time_s < self._gap_s:
            kept = kept[:-1]
        kept = [*kept, ends]
        passed = max((place for place, one in enumerate(kept) if one.passed(offsets)), default=0)
        kept = kept[passed:]
        if len(kept) > MAX_SAMPLES:
            kept = kept[::2]
            self._gap_s = (kept[-1].time_s - kept[0].time_s) / len(kept)
        elif passed:
            self._gap_s = min(self._gap_s, (kept[-1].time_s - kept[0].time_s) / MAX_SAMPLES)
        self._samples = kept  # replaced, never changed: others read it

    def records(self, offsets: Mapping[int, int]) -> int | None:
        """Records that the buckets lack up to the newest sample; None without one of each bucket."""
        ends = self._samples[-1].by_bucket if self._samples else {}
        if not offsets.keys() <= ends.keys():
            return None
        return sum(max(0, ends[bucket] - offset) for bucket, offset in offsets.items())

    def seconds(self, offsets: Mapping[int, int], now_s: float) -> float | None:
        """For how long at most some bucket has lacked something; None without a sample of each.

        One that is behind every sample has been since before the first of them.
        """
        samples = self._samples
        if not samples or not offsets.keys() <= samples[-1].by_bucket.keys():
            return None
        whole = (one.time_s for one in reversed(samples) if one.passed(offsets))
        return now_s - next(whole, samples[0].time_s)
