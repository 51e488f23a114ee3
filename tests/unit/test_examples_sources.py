"""Shuffle the future of whole data sets: from the source's rows to what a batch holds, for every source.

Everything at or after the start of a day is permuted, relabelled or deleted; all that a model is given of the
days before must come out with the same bits.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal

from vista.config import DataConfig, GeneratedConfig, HistoryCut, WindowConfig
from vista.data.batches import gather
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.rejects import Rejects
from vista.data.schema import NO_LABEL, Batch
from vista.data.sources import SOURCES, Source
from vista.recipes import kuairand, movielens

COMPARED = (
    "user_id_B", "user_row_B", "cut_us_B", "seq_offsets", "uih_item_L", "uih_category_L", "uih_action_L",
    "uih_time_us_L", "num_candidates", "candidate_item_C", "candidate_category_C", "candidate_context_CK",
    "candidate_dense_CF", "labels_CT",
)  # fmt: skip
"""All of a batch but the numbering of candidates, and value buckets where their fit sees other days."""

RECENT_TAIL = 3

GENERATED = GeneratedConfig(users=60, items=64, events_per_user=40, days=6)


def rows_of(config: DataConfig) -> pl.DataFrame:
    return pl.concat(pl.DataFrame(batch) for batch in SOURCES[config.source].read(config, Rejects()))


def prepared(rows: pl.DataFrame, config: DataConfig, path: Path, patch: pytest.MonkeyPatch) -> Dataset:
    batches = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()
    patch.setattr(Source, "read", lambda self, config, rejects: iter(batches))
    prepare_dataset(config, path, WindowConfig())
    return Dataset.open(path)


def given_before(dataset: Dataset, day: int, max_uih: int) -> Batch:
    examples = dataset.examples(0, day)
    return gather(examples, np.arange(len(examples)), max_uih)


def shuffled(rows: pl.DataFrame, from_us: int) -> pl.DataFrame:
    """What happens at or after `from_us` happens to others and ends otherwise; who and when stay."""
    kept = ["user_id", "event_time_us", "seq", "candidate_only"]
    future = rows["event_time_us"].to_numpy() >= from_us
    place = np.arange(rows.height)
    place[future] = np.random.default_rng(0).permutation(place[future])
    moved = rows[place].select(pl.exclude(kept))
    flipped = [
        pl.when(pl.col(name) == NO_LABEL)
        .then(NO_LABEL)
        .otherwise(1 - pl.col(name))
        .cast(pl.UInt8)
        .alias(name)
        for name in moved.columns
        if name.startswith("label_")
    ]
    changed = rows.with_columns(moved.with_columns(flipped).get_columns())
    return pl.concat([rows.filter(~future), changed.filter(future)])


def assert_same(before: Batch, after: Batch, names: tuple[str, ...]) -> None:
    for name in names:
        assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
    assert len(before.candidate_id_C)
    assert before.seq_offsets[-1]


def check(config: DataConfig, tmp_path: Path, patch: pytest.MonkeyPatch, one_user_of: int = 1) -> None:
    rows = rows_of(config).filter(pl.col("user_id") % one_user_of == 0)
    whole = prepared(rows, config, tmp_path / "whole", patch)
    day = whole.split().k
    from_us = whole.day_start_us(day)
    after = prepared(shuffled(rows, from_us), config, tmp_path / "shuffled", patch)
    assert after.info.digest != whole.info.digest
    left = prepared(rows.filter(pl.col("event_time_us") < from_us), config, tmp_path / "left", patch)
    for max_uih in (10**6, RECENT_TAIL):
        before = given_before(whole, day, max_uih)
        assert_same(before, given_before(after, day, max_uih), (*COMPARED, "uih_value_L"))
        assert_same(before, given_before(left, day, max_uih), COMPARED)
        assert (before.uih_time_us_L <= np.repeat(before.cut_us_B, np.diff(before.seq_offsets))).all()


@pytest.mark.parametrize("mode", ["event", "session", "day"])
def test_generated(mode: HistoryCut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="generated", buckets=3, history_cut=mode, generated=GENERATED)
    check(config, tmp_path, monkeypatch)


@pytest.mark.real_data
@pytest.mark.parametrize("mode", ["event", "session", "day"])
def test_movielens(mode: HistoryCut, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = movielens(str(data_dir / "ml-latest-small"))
    config = recipe.data.model_copy(update={"history_cut": mode, "buckets": 4})
    check(config, tmp_path, monkeypatch, one_user_of=3)


@pytest.mark.real_data
def test_kuairand(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = kuairand(str(data_dir / "kuairand-pure"))
    check(recipe.data.model_copy(update={"buckets": 4}), tmp_path, monkeypatch, one_user_of=6)
