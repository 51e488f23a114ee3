"""How fast data is prepared and fed: `python -m vista.data.bench [--out FILE]` prints JSON.

Generates a shop's log (sessions of SESSION events a minute apart, in the order of time) in a temporary
folder, prepares it from Parquet and from gzip CSV, and feeds the batches of an epoch. `cpu_s` is of all
threads: on a machine that does other work it says more than `wall_s`.
"""

import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import polars as pl
import yaml

from vista.config import DataConfig, Frozen, WindowConfig
from vista.data.batches import BatchPlan, batches
from vista.data.dataset import Dataset
from vista.data.features import Asked, UsersPast, dense_features, items_past
from vista.data.prepare import prepare_dataset
from vista.data.rejects import Rejects
from vista.data.schema import buckets_of
from vista.data.sources import SOURCES

USERS_PER_EVENT = 0.01
ITEMS = 20_000
SESSION = 8
DAYS = 14
FIRST_S = 1_767_225_600
"""2026-01-01 UTC."""
MAPPING = {
    "user": "customer", "item": "product", "time": "ts", "time_unit": "s", "label": "clicked",
    "value": "price", "category": "department", "context": {"device": 4},
}  # fmt: skip


class Measured(Frozen):
    """One thing that was done to `rows` rows (events or tokens)."""

    name: str
    rows: int
    wall_s: float
    cpu_s: float
    rows_per_s: int
    passes_s: dict[str, float]


def write_events(folder: Path, events: int, ending: str) -> DataConfig:
    """A folder with a log of `events` rows and its mapping."""
    random = np.random.default_rng(0)
    sessions = -(-events // SESSION)
    start_s = random.integers(0, DAYS * 86_400 - SESSION * 60, sessions)
    ts = (FIRST_S + start_s[:, None] + 60 * np.arange(SESSION)).ravel()[:events]
    product = (ITEMS * random.random(events) ** 2).astype(np.int64)
    log = pl.DataFrame(
        {
            "customer": np.repeat(random.integers(0, int(events * USERS_PER_EVENT), sessions), SESSION)[
                :events
            ],
            "product": product,
            "ts": ts,
            "clicked": (random.random(events) < 0.3).astype(np.int8),
            "department": product % 50,
            "price": random.random(events).round(2),
            "device": random.integers(0, 4, events),
        }
    ).sort("ts", maintain_order=True)
    folder.mkdir()
    (folder / "events.yaml").write_text(yaml.safe_dump(MAPPING))
    if ending == "parquet":
        log.write_parquet(folder / "log.parquet")
    else:
        log.write_csv(folder / "log.csv.gz", compression="gzip")
    return DataConfig(source="events", path=str(folder))


class Bench:
    """Measurements, in the order in which they were made."""

    def __init__(self) -> None:
        self.measured: list[Measured] = []

    @contextmanager
    def timed(self, name: str, rows: int) -> Iterator[dict[str, float]]:
        passes_s: dict[str, float] = {}
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        yield passes_s
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        one = Measured(
            name=name,
            rows=rows,
            wall_s=round(wall_s, 3),
            cpu_s=round(cpu_s, 3),
            rows_per_s=round(rows / wall_s),
            passes_s=passes_s,
        )
        click.echo(f"{name}: {one.rows_per_s:,} rows/s", err=True)
        self.measured.append(one)

    def prepare(self, name: str, data: DataConfig, events: int, path: Path) -> Dataset:
        """Reading alone, then everything."""
        with self.timed(f"{name}: read the source only", events):
            for _ in SOURCES[data.source].read(data, Rejects()):
                pass
        with self.timed(f"{name}: prepare", events) as passes_s:
            passes_s |= prepare_dataset(data, path, WindowConfig()).seconds
        return Dataset.open(path)

    def features(self, dataset: Dataset) -> None:
        """The part of `prepare` that dense features are, once more, bucket by bucket."""
        examples = dataset.examples(0, dataset.info.last_day + 1)
        bucket_E = buckets_of(examples.user_id_E, dataset.buckets)
        bucket_N = buckets_of(dataset.events.user_id_N, dataset.buckets)
        with self.timed("dense features only, one thread", dataset.info.candidates):
            items = items_past(dataset)
            for bucket in np.unique(bucket_E):
                mine_N = np.flatnonzero(bucket_N == bucket)
                part = examples.where(bucket_E == bucket)
                chosen_C = part.candidate_ids()
                start_E = part.history_start_E - mine_N[0]
                asked = Asked(
                    user_start_E=start_E,
                    cut_position_E=start_E + part.history_length_E,
                    cut_us_E=part.cut_us_E,
                    example_C=np.repeat(np.arange(len(part)), part.num_candidates_E),
                    item_row_C=dataset.candidates.item_row_C[chosen_C],
                    category_row_C=dataset.candidates.category_row_C[chosen_C],
                )
                users = UsersPast(dataset.events.take(mine_N), len(dataset.file.actions), items)
                dense_features(users, items, asked)

    def batches(self, dataset: Dataset) -> None:
        """One epoch; rows are tokens: events of histories and candidates."""
        plan = BatchPlan.make(
            dataset.examples(0, dataset.info.last_day + 1),
            max_tokens=65_536, max_candidates=1_024, max_uih=200, seed=0, epoch=0,
        )  # fmt: skip
        with self.timed("batches", int(plan.tokens_E.sum())):
            for _ in batches(plan):
                pass


@click.command()
@click.option("--parquet-events", default=2_000_000, show_default=True)
@click.option("--gzip-events", default=1_000_000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="also write the JSON to this file")
def main(parquet_events: int, gzip_events: int, out: Path | None) -> None:
    """Measure the preparation of events and the batches made of them."""
    bench = Bench()
    with tempfile.TemporaryDirectory(prefix="vista-bench-") as name:
        folder = Path(name)
        warm = write_events(folder / "warm", 20_000, "csv.gz")
        prepare_dataset(warm, folder / "warmed", WindowConfig())  # imports
        zipped = write_events(folder / "gzip", gzip_events, "csv.gz")
        bench.prepare("gzip CSV", zipped, gzip_events, folder / "from-gzip")
        parquet = write_events(folder / "parquet", parquet_events, "parquet")
        dataset = bench.prepare("Parquet", parquet, parquet_events, folder / "from-parquet")
        bench.features(dataset)
        bench.batches(dataset)
    report = {
        "machine": {
            "cpus": os.cpu_count(),
            "load_1m": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024,
        "measured": [one.model_dump() for one in bench.measured],
    }
    text = json.dumps(report, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
