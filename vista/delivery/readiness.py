"""Is a region ready for an epoch? Every bucket past its barrier, the manifest's users, canaries equal."""

from collections.abc import Sequence
from dataclasses import dataclass

from vista.config import Frozen
from vista.delivery.interfaces import BucketState, Epoch, EpochState, Log, Store
from vista.errors import RecordError
from vista.summary.record import inspect, space_id
from vista.summary.table import Shard, read_bucket, shards_of

CANARIES = 16


class RegionReport(Frozen):
    """How far one region's store is with an epoch; the age is None if it holds nothing of it."""

    coverage: float
    lag_records: int
    oldest_summary_age_s: float | None


@dataclass(frozen=True, slots=True)
class RegionState:
    """All buckets of a region at about one time, in order."""

    region: str
    buckets: tuple[BucketState, ...]

    @classmethod
    def of(cls, region: str, store: Store, buckets: int) -> "RegionState":
        return cls(region, tuple(store.state(bucket) for bucket in range(buckets)))

    def gaps(self, epoch: Epoch, shards: Sequence[Shard]) -> list[str]:
        """What is missing, in words, bucket by bucket; empty if the region is ready for the epoch."""
        return [gap for shard in shards if (gap := self.gap(epoch, shard))]

    def coverage(self, epoch: Epoch, shards: Sequence[Shard]) -> float:
        """Share of the epoch's users that the region holds; below 1 while a bucket has a gap."""
        total = sum(shard.rows for shard in shards)
        held = sum(
            min(shard.rows - 1, self._users(epoch, shard.bucket)) if self.gap(epoch, shard) else shard.rows
            for shard in shards
        )
        return max(0, held) / total if total else 1.0

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
        if state.keys_digest != shard.keys_digest:
            return f"{where} holds {state.users} users, and not the {shard.rows} users of the manifest"
        return ""

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
