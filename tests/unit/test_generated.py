"""The planted signal is where the generated source says it is, and nowhere else: counts, no training.

One user with a long history flows through with bounded memory.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.batches import BatchPlan
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.rejects import Rejects
from vista.data.schema import Batch
from vista.data.sources import SOURCES
from vista.data.sources.generated import LONG_S, TASTES, oracle_auc, taste_of

SIZE = GeneratedConfig(users=300, items=128, events_per_user=100, days=6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "generated"
    prepare_dataset(DataConfig(source="generated", buckets=3, generated=SIZE), path, WindowConfig())
    return Dataset.open(path)


def everything(dataset: Dataset, max_uih: int) -> Batch:
    plan = BatchPlan.make(
        dataset.examples(0, 6), max_tokens=10**9, max_candidates=10**9, max_uih=max_uih, seed=0, epoch=0
    )
    return plan.batch(0)


def auc(batch: Batch, score_C: NDArray[np.float64]) -> float:
    return oracle_auc(pl.Series(batch.labels_CT[:, 0]), pl.Series(score_C))


def matches(batch: Batch, weight_L: NDArray[np.float64]) -> NDArray[np.float64]:
    """Summed weights of the events in the candidate's category."""
    categories = int(batch.uih_category_L.max()) + 1
    user_L = np.repeat(np.arange(len(batch.user_id_B)), np.diff(batch.seq_offsets))
    user_C = np.repeat(np.arange(len(batch.user_id_B)), batch.num_candidates)
    table = np.zeros((len(batch.user_id_B), categories))
    np.add.at(table, (user_L, batch.uih_category_L), weight_L)
    return table[user_C, batch.candidate_category_C]


def test_what_a_user_watches_long_is_of_her_taste(dataset: Dataset) -> None:
    """Clusters are categories, and a trait is a bit of a cluster's number."""
    events = pl.read_parquet(dataset.path / "events").filter(pl.col("value") == LONG_S)
    watched = events.group_by("user_id").agg(pl.col("category_id").unique()).sort("user_id")
    tastes = taste_of(watched["user_id"].to_numpy())
    assert np.bincount(tastes).tolist() == [50] * len(TASTES)
    for taste, categories in zip(tastes.tolist(), watched["category_id"].to_list(), strict=True):
        want, _, number = TASTES[taste].split()
        assert {category >> int(number) - 1 & 1 for category in categories} == {int(want == "with")}


def test_the_oracle_is_reported_and_the_whole_history_reaches_it(dataset: Dataset) -> None:
    assert dataset.info.oracle_auc is not None
    assert 0.85 < dataset.info.oracle_auc < 0.92
    batch = everything(dataset, 100)
    long_L = (batch.uih_value_L == batch.uih_value_L.max()).astype(float)
    assert auc(batch, matches(batch, long_L)) > dataset.info.oracle_auc - 0.02


def test_counting_without_watch_times_falls_behind(dataset: Dataset) -> None:
    assert dataset.info.oracle_auc is not None
    batch = everything(dataset, 100)
    counted = auc(batch, matches(batch, np.ones(len(batch.uih_item_L))))
    assert 0.6 < counted < dataset.info.oracle_auc - 0.03


def test_the_newest_tenth_carries_nothing(dataset: Dataset) -> None:
    batch = everything(dataset, 10)
    long_L = (batch.uih_value_L == batch.uih_value_L.max()).astype(float)
    for weight_L in (np.ones(len(long_L)), long_L):
        assert abs(auc(batch, matches(batch, weight_L)) - 0.5) < 0.02


def test_ids_counts_and_dense_features_carry_nothing(dataset: Dataset) -> None:
    batch = everything(dataset, 1)
    candidates = dataset.candidates
    labels = pl.DataFrame({"user": candidates.user_id_C, "category": candidates.category_row_C})
    labels = labels.with_columns(label=pl.Series(candidates.labels_CT[:, 0]))
    for key in ("user", "category"):  # even in hindsight
        spread = labels.group_by(key).agg(pl.col("label").mean())["label"].std()
        expected = 0.5 / np.sqrt(labels.height / labels[key].n_unique())
        assert spread is not None
        assert spread < 1.3 * expected
    for column in batch.candidate_dense_CF.T[:4]:
        assert abs(auc(batch, column.astype(float)) - 0.5) < 0.03


def test_users_do_not_depend_on_how_many_there_are() -> None:
    def rows(users: int) -> pl.DataFrame:
        config = DataConfig(source="generated", generated=SIZE.model_copy(update={"users": users}))
        batches = SOURCES["generated"].read(config, Rejects())
        return pl.concat(pl.DataFrame(batch) for batch in batches)

    assert set(rows(20)["user_id"]) == set(range(20))
    assert rows(20).height * 2 == rows(40).height


# VmHWM, because ru_maxrss begins with the memory of the process that starts this one.
LONG = """
import sys
from pathlib import Path
from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.batches import BatchPlan, batches
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset

path, events = Path(sys.argv[1]), int(sys.argv[2])
size = GeneratedConfig(users=1, items=10_000, events_per_user=events, days=6)
config = DataConfig(source="generated", buckets=2, max_uih=events, generated=size)
prepare_dataset(config, path, WindowConfig())
dataset = Dataset.open(path)
examples = dataset.examples(0, 6)
plan = BatchPlan.make(examples, max_tokens=1, max_candidates=1, max_uih=events, seed=0, epoch=0)
tokens = sum(int(batch.seq_offsets[-1]) for batch in batches(plan))
status = Path("/proc/self/status").read_text()
(peak_kb,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
print(tokens, int(peak_kb) * 1024)
"""


def test_one_user_with_a_million_events_needs_little_memory(tmp_path: Path) -> None:
    """Every batch holds the whole history once: from the source to the batch below 2 GB."""
    events = 1_000_000
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(tmp_path / "data"), str(events)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tokens, memory_bytes = map(int, done.stdout.split())
    assert tokens > 6 * events * 0.75
    assert memory_bytes < 2e9
