"""Summaries from the nearest region that holds a release's whole epoch."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vista.data.schema import bucket_of
from vista.delivery.interfaces import Release, Store
from vista.delivery.readiness import RegionState
from vista.errors import BackendError, RecordError, SpaceMismatchError
from vista.summary.record import inspect, space_id

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How long a region counts as whole, or as one to pass over, before it is looked at again. A look asks for
every bucket, and waits for a store that is away: it is done beside the reads, but for a region's first."""

FORGET_S = 60.0
"""A verdict that is older says nothing: the region is looked at first."""


@dataclass(frozen=True, slots=True)
class Read:
    """One user's record and the region that had it; or None, and why."""

    data: bytes | None
    region: str | None = None
    why: str | None = None


class RegionReader:
    """Reads one release's epoch, nearest region first, and counts where the answers came from:
    `nearest`, `failed_over`, `missed` (a whole region holds no summary of the user), `unreachable`.

    A region that cannot be read, does not hold all of the epoch or answers with damaged bytes is passed over.
    """

    def __init__(self, stores: Mapping[str, Store], release: Release, buckets: int) -> None:
        self.counts: Counter[str] = Counter()
        self._stores, self._release, self._buckets = stores, release, buckets
        self._verdicts: dict[str, tuple[float, str]] = {}  # until when; why it is passed over, empty if whole
        self._beside = ThreadPoolExecutor(len(stores))
        self._looks: dict[str, Future[str]] = {}

    def read(self, users: Sequence[int]) -> list[Read]:
        """The users' records, in their order. Raises `SpaceMismatchError` for a record of another space,
        epoch or user."""
        found: dict[int, Read] = {}
        reasons: list[str] = []
        for place, (name, store) in enumerate(self._stores.items()):
            waiting = [user for user in dict.fromkeys(users) if user not in found]
            if not waiting:
                break
            try:
                answers, problem = self._read(name, store, waiting)
            except BackendError as error:
                answers, problem = {}, str(error)
                self._verdicts[name] = (time.monotonic() + CHECK_S, problem)
            if problem:
                log.warning("region %s is passed over: %s", name, problem)
                reasons.append(f"region {name}: {problem}")
            for answer in answers.values():
                kind = "nearest" if place == 0 else "failed_over"
                self.counts["missed" if answer.data is None else kind] += 1
            found |= answers
        nowhere = Read(None, why="; ".join(reasons))
        self.counts["unreachable"] += sum(user not in found for user in dict.fromkeys(users))
        return [found.get(user, nowhere) for user in users]

    def close(self) -> None:
        """Wait for the looks beside; the stores may be closed then."""
        self._beside.shutdown(cancel_futures=True)

    def _read(self, name: str, store: Store, users: Sequence[int]) -> tuple[dict[int, Read], str]:
        """What the region answers, and why it does not answer for the other users."""
        if problem := self._problem(name, store):
            return {}, problem
        found: dict[int, Read] = {}
        whole: dict[int, bool] = {}  # by bucket, of those in which a user is missed
        for user, data in zip(
            users, store.get_many(self._release.space, self._release.epoch, users), strict=True
        ):
            if data is not None:
                try:
                    self._check(name, user, data)
                except RecordError as error:
                    problem = str(error)
                else:
                    found[user] = Read(data, region=name)
                continue
            bucket = bucket_of(user, self._buckets)
            if bucket not in whole:
                whole[bucket] = self._is_whole(store, bucket)
            if whole[bucket]:
                found[user] = Read(None, why=f"region {name} holds no summary of this user")
            else:  # it was wiped since it was looked at
                problem = self._incomplete()
                self._verdicts[name] = (time.monotonic() + CHECK_S, problem)
        return found, problem

    def _problem(self, name: str, store: Store) -> str:
        (until_s, problem), now_s = self._verdicts.get(name, (-FORGET_S, "")), time.monotonic()
        if now_s < until_s:
            return problem
        if now_s >= until_s + FORGET_S:
            self._looks.pop(name, None)
            return self._look(name, store)
        if name in self._looks and self._looks[name].done():
            self._looks.pop(name).result()  # if it failed, the region cannot be read
        if name not in self._looks:
            self._looks[name] = self._beside.submit(self._look, name, store)
        return problem

    def _look(self, name: str, store: Store) -> str:
        state = RegionState.of(name, store, self._buckets)
        whole = state.complete(self._release.space, self._release.epoch)
        problem = "" if whole else self._incomplete()
        self._verdicts[name] = (time.monotonic() + CHECK_S, problem)
        return problem

    def _is_whole(self, store: Store, bucket: int) -> bool:
        key = space_id(self._release.space), self._release.epoch
        epoch = store.state(bucket, reading=True).epochs.get(key)
        return epoch is not None and epoch.barrier

    def _incomplete(self) -> str:
        return f"it does not hold all of epoch {self._release.epoch} of {self._release.space}"

    def _check(self, name: str, user: int, data: bytes) -> None:
        header = inspect(data)
        found = header.user_id, header.epoch, header.space_id
        asked = user, self._release.epoch, space_id(self._release.space)
        if found != asked:
            raise SpaceMismatchError(
                f"region {name} answered for {_named(*asked)} with the record of {_named(*found)}: empty its "
                "store, it refills from the log"
            )


def _named(user: int, epoch: int, space: int) -> str:
    return f"user {user}, epoch {epoch} of space {space:016x}"
