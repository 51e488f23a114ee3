"""What a Redis store costs: `python -m vista.delivery.bench_store URL` prints JSON, and writes it.

Summaries of 128 seeds x 256 as int8 with zstd, in batches of what a worker reads at once. The yardstick is a
bare pipelined SET of the same bytes in the same batches by the same client, in turn with `apply`: nothing is
compared or counted there, and no offset is kept. The ratio is judged (exit code 1). The store must be empty.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import click
import numpy as np

from vista.data.schema import bucket_of
from vista.delivery.control import retirement
from vista.delivery.redis_nodes import Nodes
from vista.delivery.redis_store import RedisStore
from vista.delivery.worker import MAX_BATCH_BYTES
from vista.evaluate.verdicts import Verdict, judge
from vista.summary.codec import encode_summaries
from vista.summary.record import Codec, space_id

SPACE = "bench"
SEEDS, WIDTH, BUCKETS = 128, 256, 32
BUCKET = 0
OF_BARE = 0.6
P = ParamSpec("P")


def users_of(count: int) -> list[int]:
    """The first users of the bucket."""
    found: list[int] = []
    user = 0
    while len(found) < count:
        if bucket_of(user, BUCKETS) == BUCKET:
            found.append(user)
        user += 1
    return found


def batches_of(users: Sequence[int], epoch: int, seq: int) -> list[list[bytes]]:
    """Records of random summaries, as a worker reads them."""
    draw = np.random.default_rng([epoch, seq])
    batches: list[list[bytes]] = [[]]
    for user in users:
        values_BSD = draw.standard_normal((1, SEEDS, WIDTH)).astype(np.float32)
        batches[-1] += encode_summaries(
            values_BSD, space_id=space_id(SPACE), epoch=epoch, as_of_us=1_000, user_id_B=np.array([user]),
            seq_B=np.array([seq]), event_time_us_B=np.array([999]), codec=Codec.INT8, zstd=True,
        )  # fmt: skip
        if sum(map(len, batches[-1])) + len(batches[-1][0]) > MAX_BATCH_BYTES:
            batches.append([])
    return [batch for batch in batches if batch]


def seconds(action: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    started_s = time.perf_counter()
    action(*args, **kwargs)
    return time.perf_counter() - started_s


class Bench:
    """One bucket of an empty store, and a bare client of the same node."""

    def __init__(self, url: str) -> None:
        self.store, self.offset = RedisStore(url, BUCKETS), 0
        self.node = Nodes(url).primary("s:bare")

    def apply(self, batches: Sequence[Sequence[bytes]]) -> None:
        for batch in batches:
            applied = self.store.apply(BUCKET, self.offset, self.offset + len(batch), batch)
            assert applied.written == len(batch)
            self.offset = applied.offset

    def set_bare(self, batches: Sequence[Sequence[bytes]]) -> None:
        number = 0
        for batch in batches:
            pipeline = self.node.pipeline(transaction=False)
            for data in batch:
                pipeline.set(f"s:bare:{number}", data)
                number += 1
            pipeline.execute()

    def forget_bare(self, count: int) -> None:
        self.node.unlink(*(f"s:bare:{number}" for number in range(count)))

    def forget(self, epoch: int) -> None:
        self.offset = self.store.apply(
            BUCKET, self.offset, self.offset + 1, [retirement(SPACE, epoch)]
        ).offset
        self.store.retire(SPACE, epoch)


def measured(url: str, users: Sequence[int], rounds: int) -> dict[str, Any]:
    """Rates are of all rounds; a ratio is of one round, and the median of them is what counts."""
    bench, times = Bench(url), {name: [0.0] * rounds for name in ("set_bare", "apply", "update")}
    free_bytes = bench.store.state(BUCKET).free_bytes
    for number in range(rounds):
        epoch = number + 1
        new, newer = (batches_of(users, epoch, seq) for seq in (0, 1))
        times["set_bare"][number] = seconds(bench.set_bare, new)
        bench.forget_bare(len(users))
        times["apply"][number] = seconds(bench.apply, new)
        held_bytes = free_bytes - bench.store.state(BUCKET).free_bytes
        times["update"][number] = seconds(bench.apply, newer)
        if number < rounds - 1:
            bench.forget(epoch)
    size = sum(len(data) for batch in newer for data in batch)
    rates = {name: len(users) * rounds / sum(times[name]) for name in times}
    ratios = [bare / ours for bare, ours in zip(times["set_bare"], times["apply"], strict=True)]
    reads_s = [seconds(bench.store.get_many, SPACE, rounds, [user]) for user in users]
    return {
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "records": len(users),
        "record_bytes": round(size / len(users)),
        "batch_records": len(newer[0]),
        "memory_bytes_per_record": round(held_bytes / len(users)),
        "records_per_s": {name: round(rate) for name, rate in rates.items()},
        "apply_to_bare_set": {"median": statistics.median(ratios), "rounds": ratios},
        "get_ms": {
            "p50": 1e3 * statistics.median(reads_s),
            "p99": 1e3 * sorted(reads_s)[len(users) * 99 // 100],
        },
        "get_many_per_s": round(len(users) / seconds(bench.store.get_many, SPACE, rounds, users)),
        "state_ms": 1e3 * statistics.median(seconds(bench.store.state, BUCKET) for _ in range(100)),
    }


def verdicts_of(report: Mapping[str, Any]) -> list[Verdict]:
    """What the store owes to a bare loop."""
    return [Verdict("apply / bare SET", report["apply_to_bare_set"]["median"], OF_BARE, at_least=True)]


@click.command(help=__doc__)
@click.option("--records", default=2_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench-store.json"), show_default=True
)
@click.argument("url")
def main(records: int, rounds: int, out: Path, url: str) -> None:
    report = measured(url, users_of(records), rounds)
    text = json.dumps(report, indent=2)
    click.echo(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    judge(verdicts_of(report))


if __name__ == "__main__":
    main()
