"""The store of a region in Redis 7 or Valkey: a materialised view of the log.

    w:{<bucket>}                         hash: offset, log, release; of every space floor and space, its name;
                                         of every epoch (<space>:<epoch>) barrier, users, low and high
    w:{<bucket>}:<space>:<epoch>         index: the users, as little-endian int64, by as_of_us
    w:{<bucket>}:dead                    stream: dead letters
    s:<space>:<epoch>:{<bucket>}:<user>  the record
    s:new:{<bucket>}:<number>            a record of a batch, only while it is applied
    w:buckets                            how many there are

<space> is the space's id in 16 hex digits, all that a record says of it. The braces keep a bucket in one
slot of a Cluster, so that one function, apply.lua, changes it in one step. `low` and `high` add up the halves
of the users' digests. A record of up to 32,762 bytes takes 32,840 in memory, a longer one 41,032.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import filterfalse
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ResponseError

from vista.data.schema import bucket_of
from vista.delivery.changes import Barrier, Retirement, Unusable, change_of
from vista.delivery.interfaces import (
    LETTERS_AT_ONCE,
    Applied,
    BucketState,
    DeadLetter,
    EpochState,
    Release,
)
from vista.delivery.redis_nodes import Nodes
from vista.errors import BackendError
from vista.summary.record import HEADER_BYTES, Header, digest_text, is_tombstone, space_id, user_digest

RETIRE_SLICE = 1_000
PATIENCE_S = 5.0
"""A Sentinel or a Cluster replaces a primary in 2 to 4 s."""
READ_PATIENCE_S = 0.5
"""Whoever reads can ask another region."""
COUNT_S = 10.0
"""So long the buckets are taken to lie on the nodes where they lay: counting them asks for each."""

_BUCKETS = "w:buckets"
_EPOCH_FIELDS = ("barrier", "users", "low", "high")


class RedisStore:
    """See `vista.delivery.interfaces.Store`."""

    def __init__(self, url: str, buckets: int) -> None:
        """Raises `InputError` for a URL that names no Redis."""
        self._nodes = Nodes(url)
        self._wanted_buckets = buckets
        self._known_buckets = 0
        self._counted_s, self._counts = 0.0, Counter[Redis]()

    @property
    def _buckets(self) -> int:
        """Not a `cached_property`: before Python 3.12 all stores would wait for a silent one."""
        if not self._known_buckets:
            self._known_buckets = self._checked_buckets()
        return self._known_buckets

    def _checked_buckets(self) -> int:
        kept = self._nodes.ask(PATIENCE_S, self._fixed_buckets)
        if kept != self._wanted_buckets:
            raise BackendError(
                f"{self._nodes.url} has {kept} buckets, this run has {self._wanted_buckets}: the count is "
                "fixed per deployment; use another Redis, or the same count"
            )
        return kept

    def apply(
        self,
        bucket: int,
        expected_offset: int,
        next_offset: int,
        records: Sequence[bytes],
        log: str = "",
        *,
        new_log: bool = False,
    ) -> Applied:
        batch = _Batch(bucket, self._buckets, next_offset, log, new_log)
        for data in records:
            batch.take(data)
        stored, *counts = self._nodes.ask(PATIENCE_S, self._apply, batch, expected_offset)
        offset = int(stored)
        # Announced too if it had been applied before: perhaps by us, and the answer was lost.
        retirements = tuple(batch.retirements) if offset >= next_offset else ()
        if not counts:
            return Applied(accepted=False, offset=offset, retirements=retirements)
        written, older, conflicts, retired = counts
        return Applied(True, offset, written, older, conflicts, retired, batch.dead_letters, retirements)

    def get_many(self, space: str, epoch: int, users: Sequence[int]) -> list[bytes | None]:
        by_bucket: dict[int, list[int]] = {}
        for user in users:
            by_bucket.setdefault(bucket_of(user, self._buckets), []).append(user)
        found = self._nodes.ask(READ_PATIENCE_S, self._get_many, f"{space_id(space):016x}", epoch, by_bucket)
        return [found[user] for user in users]

    def state(self, bucket: int, *, reading: bool = False) -> BucketState:
        try:
            found = self._nodes.ask(READ_PATIENCE_S if reading else PATIENCE_S, self._state, bucket)
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise BackendError(
                f"{self._nodes.url}: what bucket {bucket} keeps is damaged ({what}): empty this Redis, it "
                "refills from the log"
            ) from error
        if not found.offset:  # perhaps it was wiped, and the number of buckets with it
            self._checked_buckets()
        return found

    def retire(self, space: str, epoch: int, at_most: int | None = None, bucket: int | None = None) -> int:
        deleted = 0
        for number in range(self._buckets) if bucket is None else (bucket,):
            held = self._nodes.ask(PATIENCE_S, self._held, number)
            for tag in filter(held.is_retired, held.tags):
                if _key(tag)[0] != space_id(space) or _key(tag)[1] > epoch:
                    continue
                while (count := self._nodes.ask(PATIENCE_S, self._delete_slice, number, tag)) is not None:
                    deleted += count
                    if at_most is not None and deleted >= at_most:
                        return deleted
        return deleted

    def count_dead_letters(self, bucket: int) -> int:
        return self._nodes.ask(PATIENCE_S, self._count_dead_letters, bucket)

    def dead_letters(self, bucket: int, after: DeadLetter | None = None) -> list[DeadLetter]:
        first = "-" if after is None else f"({after.id}"
        return [
            DeadLetter(
                name.decode(),
                bucket,
                int(letter[b"next_offset"]),
                letter[b"reason"].decode(),
                letter[b"data"],
            )
            for name, letter in self._nodes.ask(PATIENCE_S, self._dead_letters, bucket, first)
        ]

    def delete_dead_letters(self, bucket: int, letters: Sequence[DeadLetter]) -> int:
        return self._nodes.ask(PATIENCE_S, self._delete_dead_letters, bucket, letters) if letters else 0

    def close(self) -> None:
        self._nodes.close()

    def _fixed_buckets(self) -> int:
        node, wanted = self._nodes.primary(_BUCKETS), self._wanted_buckets
        return int(node.get(_BUCKETS) or node.set(_BUCKETS, wanted, nx=True, get=True) or wanted)

    def _apply(self, batch: "_Batch", expected_offset: int) -> list[Any]:
        node, (name, code) = self._nodes.primary(_bucket(batch.bucket)), _library()
        try:
            return batch.apply(node, name, expected_offset)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
        if batch.records:
            node.unlink(*batch.records)
        self._free_bytes(node.info("memory"))
        node.execute_command("FUNCTION", "LOAD", "REPLACE", code)
        return batch.apply(node, name, expected_offset)

    def _get_many(
        self, space: str, epoch: int, users: Mapping[int, Sequence[int]]
    ) -> dict[int, bytes | None]:
        """By user; `users` by bucket. A pipeline per node; a bucket's floor is read before its records."""
        by_node: dict[Redis, list[int]] = {}
        for bucket in users:
            by_node.setdefault(self._nodes.primary(_bucket(bucket)), []).append(bucket)
        found: dict[int, bytes | None] = {}
        for node, buckets in by_node.items():
            pipeline = node.pipeline(transaction=False)
            for bucket in buckets:
                pipeline.hget(_bucket(bucket), f"floor:{space}")
                for user in users[bucket]:
                    pipeline.get(_record(f"{space}:{epoch}", bucket, user))
            answers = iter(pipeline.execute())
            for bucket in buckets:
                gone = epoch < int(next(answers) or 0)
                for user in users[bucket]:
                    data = next(answers)
                    found[user] = None if data is None or gone or is_tombstone(data) else data
        return found

    def _held(self, bucket: int) -> "_Held":
        return _Held.of(self._nodes.primary(_bucket(bucket)).hgetall(_bucket(bucket)))

    def _state(self, bucket: int) -> BucketState:
        node = self._nodes.primary(_bucket(bucket))
        pipeline = node.pipeline(transaction=False)
        fields, memory = pipeline.hgetall(_bucket(bucket)).info("memory").execute()
        held = _Held.of(fields)
        tags = list(filterfalse(held.is_retired, held.tags))
        for tag in tags:
            pipeline.zrange(_index(bucket, tag), 0, 0, withscores=True)
        oldest = dict(zip(tags, pipeline.execute(), strict=True))
        return BucketState(
            offset=held.offset,
            release=held.release,
            floors=held.floors,
            epochs={_key(tag): held.epoch(tag, oldest[tag]) for tag in tags},
            free_bytes=self._free_bytes(memory) * self._buckets // self._buckets_on(node),
            log=held.log,
        )

    def _buckets_on(self, node: Redis) -> int:
        now_s = time.monotonic()
        if now_s - self._counted_s > COUNT_S or node not in self._counts:
            self._counts = Counter(self._nodes.primary(_bucket(number)) for number in range(self._buckets))
            self._counted_s = now_s
        return max(1, self._counts[node])  # 0: they have been moved in this moment

    def _delete_slice(self, bucket: int, tag: str) -> int | None:
        """How many records were deleted; None if none was left."""
        node, index = self._nodes.primary(_bucket(bucket)), _index(bucket, tag)
        pipeline = node.pipeline(transaction=False)
        members = node.zrange(index, 0, RETIRE_SLICE - 1)
        if not members:
            node.hdel(_bucket(bucket), *(f"{name}:{tag}" for name in _EPOCH_FIELDS))
            return None
        users = [int.from_bytes(member, "little", signed=True) for member in members]
        # In this order: a record that no index knows would stay for ever.
        pipeline.unlink(*(_record(tag, bucket, user) for user in users)).zrem(index, *members)
        deleted: int = pipeline.execute()[0]
        return deleted

    def _delete_dead_letters(self, bucket: int, letters: Sequence[DeadLetter]) -> int:
        node = self._nodes.primary(_bucket(bucket))
        deleted: int = node.xdel(_dead(bucket), *(letter.id for letter in letters))
        return deleted

    def _count_dead_letters(self, bucket: int) -> int:
        count: int = self._nodes.primary(_bucket(bucket)).xlen(_dead(bucket))
        return count

    def _dead_letters(self, bucket: int, first: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        node = self._nodes.primary(_bucket(bucket))
        letters: list[tuple[bytes, dict[bytes, bytes]]] = node.xrange(
            _dead(bucket), min=first, count=LETTERS_AT_ONCE
        )
        return letters

    def _free_bytes(self, memory: Mapping[str, Any]) -> int:
        """What the node of this INFO can still take. Raises `BackendError` if it may forget records."""
        if memory["maxmemory_policy"] != "noeviction":
            raise BackendError(
                f"{self._nodes.url}: maxmemory-policy is {memory['maxmemory_policy']}: set it to noeviction, "
                "or records get lost unnoticed"
            )
        if not memory["maxmemory"]:
            raise BackendError(
                f"{self._nodes.url}: maxmemory is 0: set it to the memory that this node may take"
            )
        free_bytes: int = memory["maxmemory"] - memory["used_memory"] + memory["mem_not_counted_for_evict"]
        return max(0, free_bytes)


@dataclass
class _Batch:
    """One transaction: it puts the records beside their places, and apply.lua moves the newer ones there."""

    bucket: int
    buckets: int
    next_offset: int
    log: str
    new_log: bool
    records: dict[str, bytes] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    arguments: list[str | bytes | bytearray | int] = field(default_factory=list)
    dead_letters: int = 0
    retirements: list[tuple[str, int]] = field(default_factory=list)

    def take(self, data: bytes) -> None:
        """Add what one record asks."""
        change = change_of(data, self.bucket, self.buckets)
        match change:
            case Header():
                self._summary(change, data)
            case Release():
                self._add("release", change.model_dump_json(), "", "")
            case Barrier():
                self._add("barrier", _tag(change.space_id, change.epoch), "", "")
            case Retirement():
                self._add("retirement", f"{change.space_id:016x}", change.space, change.epoch + 1)
                self.retirements.append((change.space, change.epoch))
            case Unusable():
                self._add("unusable", self.next_offset, change.reason, data)
                self.dead_letters += 1

    def apply(self, node: Redis, function: str, expected_offset: int) -> list[Any]:
        """What the function answers."""
        keys = [_bucket(self.bucket), _dead(self.bucket), *self.records, *self.keys]
        numbers = (expected_offset, self.next_offset, len(self.records))
        call = (len(keys), *keys, *numbers, self.log, int(self.new_log), *self.arguments)
        answer: list[Any]
        if not (self.records or self.dead_letters):  # outside of a transaction, which a full store refuses
            answer = node.fcall(f"{function}_control", *call)
            return answer
        transaction = node.pipeline(transaction=True)
        if self.records:
            transaction.mset(self.records)
        transaction.fcall(function, *call)
        answer = transaction.execute()[-1]
        return answer

    def _summary(self, header: Header, data: bytes) -> None:
        tag = _tag(header.space_id, header.epoch)
        self.records[f"s:new:{{{self.bucket}}}:{len(self.records)}"] = data
        if self.arguments[-4:-2] != ["summaries", tag]:
            self.keys.append(_index(self.bucket, tag))
            self._add("summaries", tag, bytearray(), "")
        self.keys.append(_record(tag, self.bucket, header.user_id))
        rows = self.arguments[-2]
        assert isinstance(rows, bytearray)
        rows += data[:HEADER_BYTES] + user_digest(header.user_id).to_bytes(8, "little")

    def _add(self, *values: str | bytes | bytearray | int) -> None:
        self.arguments += values


@dataclass(frozen=True, slots=True)
class _Held:
    """A bucket's hash, by the names of its fields; spaces as 16 hex digits, epochs as tags."""

    fields: Mapping[str, bytes]

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> "_Held":
        return cls({name.decode(): value for name, value in fields.items()})

    @property
    def offset(self) -> int:
        return self._number("offset")

    @property
    def log(self) -> str:
        return self.fields.get("log", b"").decode()

    @property
    def release(self) -> Release | None:
        body = self.fields.get("release")
        return None if body is None else Release.model_validate_json(body)

    @property
    def floors(self) -> dict[str, int]:
        """By the name of the space."""
        spaces = {name.partition(":")[2]: text.decode() for name, text in self._all("space")}
        return {text: self.floor(space) for space, text in spaces.items()}

    def floor(self, space: str) -> int:
        return self._number(f"floor:{space}")

    @property
    def tags(self) -> list[str]:
        """Every epoch that has users or a barrier, retired ones too until they are deleted."""
        return sorted(
            {name.partition(":")[2] for kind in ("users", "barrier") for name, _ in self._all(kind)}
        )

    def epoch(self, tag: str, oldest: list[tuple[bytes, float]]) -> EpochState:
        return EpochState(
            users=self._number(f"users:{tag}"),
            keys_digest=digest_text((self._number(f"high:{tag}") << 32) + self._number(f"low:{tag}")),
            barrier=f"barrier:{tag}" in self.fields,
            oldest_as_of_us=int(oldest[0][1]) if oldest else None,
        )

    def is_retired(self, tag: str) -> bool:
        space, _, epoch = tag.partition(":")
        return int(epoch) < self.floor(space)

    def _number(self, name: str) -> int:
        return int(self.fields.get(name, 0))

    def _all(self, kind: str) -> Iterator[tuple[str, bytes]]:
        return ((name, value) for name, value in self.fields.items() if name.startswith(f"{kind}:"))


def _bucket(bucket: int) -> str:
    return f"w:{{{bucket}}}"


def _dead(bucket: int) -> str:
    return f"w:{{{bucket}}}:dead"


def _index(bucket: int, tag: str) -> str:
    return f"w:{{{bucket}}}:{tag}"


def _record(tag: str, bucket: int, user: int) -> str:
    return f"s:{tag}:{{{bucket}}}:{user}"


def _tag(space: int, epoch: int) -> str:
    return f"{space:016x}:{epoch}"


def _key(tag: str) -> tuple[int, int]:
    """The space's id and the epoch of a tag."""
    space, _, epoch = tag.partition(":")
    return int(space, 16), int(epoch)


@cache
def _library() -> tuple[str, str]:
    """Name and code of the function. Every version has another name: workers of two may share a store."""
    text = Path(__file__).with_name("apply.lua").read_text(encoding="utf-8")
    name = f"vista_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return name, f"#!lua name={name}\nlocal NAME = '{name}'\n{text}"
