"""A region compared with the table: what is missing, older or damaged, bucket by bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vista.delivery.interfaces import Epoch, Log, Store
from vista.delivery.readiness import RegionState, differences, manifests
from vista.errors import BackendError
from vista.summary.table import Shard


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a region.

    unreadable: its store does not answer; out_of_reach: the log does not hold what a bucket needs next;
    incomplete: a bucket lacks records or the barrier of `epoch`; damaged: a record cannot be what was stored;
    dead_letters: records that could not be applied are kept.
    """

    what: Literal["unreadable", "out_of_reach", "incomplete", "damaged", "dead_letters"]
    text: str
    bucket: int = -1
    epoch: Epoch | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One region: where it is, in a line, and what is wrong with it."""

    region: str
    line: str
    findings: tuple[Finding, ...]
    state: RegionState | None


def verify_region(
    name: str, store: Store, source: Log, epochs: Sequence[Epoch], *, all_bytes: bool
) -> Verdict:
    """Compare a region with the tables of `epochs`: barriers, sets of users, and the first record of every
    bucket, or with `all_bytes` every record. Raises `EpochError` if a table cannot be read."""
    try:
        state = RegionState.of(name, store, source.partitions)
        tables = [(epoch, manifests(epoch)) for epoch in epochs]
        findings = tuple(_findings(state, store, source, tables, all_bytes))
        covered = [(epoch, state.coverage(epoch, shards)) for epoch, shards in tables]
    except BackendError as error:
        what = Finding("unreadable", f"region {name}: {error}")
        return Verdict(name, f"region {name}: cannot be read", (what,), None)
    several = len({epoch.space for epoch in epochs}) > 1
    coverage = ", ".join(
        f"{share:.2%} of epoch {epoch.epoch}" + f" of {epoch.space}" * several for epoch, share in covered
    )
    lag = sum(max(0, source.bounds(number)[1] - one.offset) for number, one in enumerate(state.buckets))
    return Verdict(name, f"region {name}: coverage {coverage}; lag {lag:,} records", findings, state)


def _findings(
    state: RegionState,
    store: Store,
    source: Log,
    tables: Sequence[tuple[Epoch, Sequence[Shard]]],
    all_bytes: bool,
) -> Iterator[Finding]:
    for number, bucket in enumerate(state.buckets):
        first, end = source.bounds(number)
        where = f"region {state.region}, bucket {number} is at offset {bucket.offset}"
        if bucket.log not in ("", source.identity()):
            text = f"{where} of log {bucket.log}, this is log {source.identity()}: the log was replaced"
            yield Finding("out_of_reach", text, number)
        elif not first <= bucket.offset <= end:
            yield Finding("out_of_reach", f"{where}, the log holds {first} .. {end}", number)
    for epoch, shards in tables:
        for shard in shards:
            yield from _of_bucket(state, store, epoch, shard, all_bytes)
    letters = sum(map(store.count_dead_letters, range(source.partitions)))
    if letters:
        yield Finding("dead_letters", f"region {state.region} keeps dead letters: {letters}")


def _of_bucket(
    state: RegionState, store: Store, epoch: Epoch, shard: Shard, all_bytes: bool
) -> Iterator[Finding]:
    held = state.epoch(epoch, shard.bucket)
    if held is None or not held.barrier:
        yield Finding("incomplete", state.gap(epoch, shard), shard.bucket, epoch)
        return
    if all_bytes or state.has_other_users(epoch, shard):
        compared = state.differences(epoch, shard.bucket)
    else:
        compared = differences(store, epoch, shard.bucket, first_only=True)
    found, example = compared.counts, compared.examples
    where = f"region {state.region}, bucket {shard.bucket}: of epoch {epoch.epoch}'s {shard.rows} users,"
    if found["missing"] or found["older"]:
        text = f"{where} {found['missing']} missing and {found['older']} older than the table's"
        first = example.get("missing", example.get("older"))
        yield Finding("incomplete", f"{text} (first: user {first})", shard.bucket, epoch)
    if found["damaged"]:
        text = f"{where} {found['damaged']} damaged (first: user {example['damaged']})"
        yield Finding("damaged", text, shard.bucket, epoch)
