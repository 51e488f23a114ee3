"""Is a region ready for an epoch? Every bucket past its barrier, every user of the table, canaries equal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vista.config import Frozen
from vista.delivery.interfaces import BucketState, Epoch, EpochState, Log, Store
from vista.errors import RecordError
from vista.summary.record import inspect, space_id
from vista.summary.table import Shard, read_bucket, shards_of

CANARIES = 16
READ_ROWS = 128


class RegionReport(Frozen):
    """How far one region's store is with an epoch; the age is None if it holds nothing of it."""

    coverage: float
    lag_records: int
    oldest_summary_age_s: float | None


@dataclass(frozen=True, slots=True)
class RegionState:
    """All buckets of a region at about one time, in order.

    A bucket may hold more users of an epoch than its table, those that came since with streamed updates: if
    its set of users is another one, its records are compared with the table's, once.
    """

    region: str
    buckets: tuple[BucketState, ...]
    _store: Store
    _compared: "dict[tuple[str, int, int], Differences]" = field(default_factory=dict)

    @classmethod
    def of(cls, region: str, store: Store, buckets: int) -> "RegionState":
        return cls(region, tuple(store.state(bucket) for bucket in range(buckets)), store)

    def gaps(self, epoch: Epoch, shards: Sequence[Shard]) -> list[str]:
        """What is missing, in words, bucket by bucket; empty if the region is ready for the epoch."""
        return [gap for shard in shards if (gap := self.gap(epoch, shard))]

    def coverage(self, epoch: Epoch, shards: Sequence[Shard]) -> float:
        """Share of the table's users that the region holds; below 1 while a bucket has a gap."""
        total = sum(shard.rows for shard in shards)
        return sum(self._held(epoch, shard) for shard in shards) / total if total else 1.0

    def complete(self, space: str, epoch: int) -> bool:
        """Every bucket has passed the epoch's barrier, and it is not retired: it can be served."""
        key = (space_id(space), epoch)
        return all(key in bucket.epochs and bucket.epochs[key].barrier for bucket in self.buckets)

    def lacks_users(self, epoch: Epoch, shards: Sequence[Shard]) -> bool:
        """Whether a bucket holds fewer users than the epoch has there: a barrier says nothing of a hole
        before it, over which a repair of other epochs has moved the region."""
        return any(self._users(epoch, shard.bucket) < shard.rows for shard in shards)

    def serves(self, release_id: str) -> bool:
        """Every bucket has passed the release's control record."""
        return all(bucket.release is not None and bucket.release.id == release_id for bucket in self.buckets)

    def report(self, epoch: Epoch, shards: Sequence[Shard], source: Log, clock_us: int) -> RegionReport:
        key = (space_id(epoch.space), epoch.epoch)
        oldest = [
            as_of_us
            for bucket in self.buckets
            if key in bucket.epochs and (as_of_us := bucket.epochs[key].oldest_as_of_us) is not None
        ]
        return RegionReport(
            coverage=self.coverage(epoch, shards),
            lag_records=sum(
                source.bounds(number)[1] - bucket.offset for number, bucket in enumerate(self.buckets)
            ),
            oldest_summary_age_s=(clock_us - min(oldest)) / 1e6 if oldest else None,
        )

    def epoch(self, epoch: Epoch, bucket: int) -> EpochState | None:
        """What a bucket holds of an epoch; None if nothing, not even its barrier."""
        return self.buckets[bucket].epochs.get((space_id(epoch.space), epoch.epoch))

    def gap(self, epoch: Epoch, shard: Shard) -> str:
        """What a bucket lacks of an epoch, in words; empty if nothing."""
        state = self.epoch(epoch, shard.bucket)
        where = f"region {self.region}, bucket {shard.bucket}"
        if state is None:
            return f"{where} holds nothing of epoch {epoch.epoch}"
        if not state.barrier:
            return f"{where} has not passed the barrier of epoch {epoch.epoch}"
        if missing := self._missing(epoch, shard):
            return f"{where} lacks {missing} of the {shard.rows} users of epoch {epoch.epoch}'s table"
        return ""

    def has_other_users(self, epoch: Epoch, shard: Shard) -> bool:
        """Whether a bucket's users of an epoch are not just those of the table."""
        state = self.epoch(epoch, shard.bucket)
        return state is None or state.keys_digest != shard.keys_digest

    def differences(self, epoch: Epoch, bucket: int) -> "Differences":
        """All records of a bucket compared with the table's."""
        key = epoch.space, epoch.epoch, bucket
        if key not in self._compared:
            self._compared[key] = differences(self._store, epoch, bucket, first_only=False)
        return self._compared[key]

    def _held(self, epoch: Epoch, shard: Shard) -> int:
        """How many of the table's users the bucket holds; without its barrier at most all but one."""
        state = self.epoch(epoch, shard.bucket)
        held = shard.rows - self._missing(epoch, shard)
        return held if state is not None and state.barrier else min(held, max(0, shard.rows - 1))

    def _missing(self, epoch: Epoch, shard: Shard) -> int:
        if not self._users(epoch, shard.bucket):
            return shard.rows
        if not self.has_other_users(epoch, shard):
            return 0
        return self.differences(epoch, shard.bucket).counts["missing"]

    def _users(self, epoch: Epoch, bucket: int) -> int:
        state = self.epoch(epoch, bucket)
        return 0 if state is None else state.users


def canaries_differ(epoch: Epoch, store: Store) -> list[int]:
    """Users of the epoch's table whose record in the store is not the table's, nor a newer one."""
    canaries: dict[int, bytes] = {}
    for bucket in range(epoch.buckets):
        rows = next(read_bucket(epoch.location, bucket), None)
        if rows is not None and len(canaries) < CANARIES:
            canaries[int(rows.user_id_B[0])] = rows.records[0]
    held = store.get_many(epoch.space, epoch.epoch, list(canaries))
    return [
        user for (user, wanted), data in zip(canaries.items(), held, strict=True) if difference(wanted, data)
    ]


@dataclass(frozen=True, slots=True)
class Differences:
    """How many records of a bucket differ from the table, by how, and the first user of each kind."""

    counts: Counter[str]
    examples: dict[str, int]


def differences(store: Store, epoch: Epoch, bucket: int, *, first_only: bool) -> Differences:
    """A bucket's records, or only the first one, compared with the table's."""
    counts: Counter[str] = Counter()
    examples: dict[str, int] = {}
    for rows in read_bucket(epoch.location, bucket):
        users = rows.user_id_B.tolist()
        for start in range(0, 1 if first_only else len(users), READ_ROWS):
            part = slice(start, start + (1 if first_only else READ_ROWS))
            held = store.get_many(epoch.space, epoch.epoch, users[part])
            for user, wanted, data in zip(users[part], rows.records[part], held, strict=True):
                if kind := difference(wanted, data):
                    counts[kind] += 1
                    examples.setdefault(kind, user)
        if first_only:
            break
    return Differences(counts, examples)


def difference(wanted: bytes, held: bytes | None) -> str:
    """What a store's record is beside the table's: "missing", "older", "damaged"; empty if equal or newer."""
    if held is None or held == wanted:
        return "" if held == wanted else "missing"
    try:
        found, own = inspect(held), inspect(wanted)
    except RecordError:
        return "damaged"
    if (found.space_id, found.epoch, found.user_id) != (own.space_id, own.epoch, own.user_id):
        return "damaged"
    return "" if found.order > own.order else "older" if found.order < own.order else "damaged"


def manifests(epoch: Epoch) -> tuple[Shard, ...]:
    """The manifests of a published epoch, in order of bucket. Raises `EpochError`."""
    return shards_of(epoch.location, epoch.buckets)
