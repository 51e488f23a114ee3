"""Shuffle the future of whole data sets: from the source's rows to what a batch holds, for every source.

Everything at or after the start of a day is permuted, relabelled or deleted; all that a model is given of the
days before must come out with the same bits. So must all that it is given of the test day itself, but for the
candidates, when histories are frozen at its start.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal

from vista.config import DataConfig, GeneratedConfig, HistoryCut, RefreshConfig, WindowConfig
from vista.data.batches import gather
from vista.data.dataset import Dataset
from vista.data.frozen import frozen
from vista.data.prepare import prepare_dataset
from vista.data.rejects import Rejects
from vista.data.schema import NO_LABEL, Batch
from vista.data.sources import SOURCES, Source
from vista.recipes import kuairand, movielens, recipe_of

COMPARED = (
    "user_id_B", "user_row_B", "cut_us_B", "seq_offsets", "uih_item_L", "uih_category_L", "uih_action_L",
    "uih_time_us_L", "num_candidates", "candidate_item_C", "candidate_category_C", "candidate_context_CK",
    "candidate_dense_CF", "labels_CT",
)  # fmt: skip
"""All of a batch but the numbering of candidates, and value buckets where their fit sees other days."""

RECENT_TAIL = 3

MODES: tuple[HistoryCut, ...] = ("event", "session", "day")
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


def frozen_at(dataset: Dataset, day: int) -> Batch:
    examples = frozen(dataset, dataset.examples(day, day + 1), dataset.day_start_us(day))
    return gather(examples, np.arange(len(examples)), 10**6)


def relabelled(rows: pl.DataFrame, from_us: int) -> pl.DataFrame:
    """What is shown at or after `from_us` is shown as before, and ends otherwise: labels, actions, values."""
    random = np.random.default_rng(0)
    future = pl.col("event_time_us") >= from_us
    label = [
        pl.when(future & (pl.col(name) != NO_LABEL))
        .then(1 - pl.col(name))
        .otherwise(pl.col(name))
        .alias(name)
        for name in rows.columns
        if name.startswith("label_")
    ]
    mask = pl.Series(random.integers(0, 4, rows.height), dtype=pl.UInt32)
    value = pl.Series(random.random(rows.height), dtype=pl.Float32)
    return rows.with_columns(
        *label,
        pl.when(future).then(mask).otherwise("action_mask").cast(pl.UInt32).alias("action_mask"),
        pl.when(future).then(value).otherwise("value").alias("value"),
    )


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
    cuts = {max_uih: given_before(whole, day, max_uih) for max_uih in (10**6, RECENT_TAIL)}
    for max_uih, before in cuts.items():
        assert_same(before, given_before(after, day, max_uih), (*COMPARED, "uih_value_L"))
        assert (before.uih_time_us_L <= np.repeat(before.cut_us_B, np.diff(before.seq_offsets))).all()
    last = whole.split().n
    if SOURCES[config.source].describe(config).negatives_per_positive:
        return
    blind = prepared(relabelled(rows, whole.day_start_us(last)), config, tmp_path / "relabelled", patch)
    assert_frozen(frozen_at(whole, last), frozen_at(blind, last), whole.day_start_us(last))
    left = prepared(rows.filter(pl.col("event_time_us") < from_us), config, tmp_path / "left", patch)
    for max_uih, before in cuts.items():
        assert_same(before, given_before(left, day, max_uih), COMPARED)


def assert_frozen(before: Batch, after: Batch, boundary_us: int) -> None:
    assert_same(before, after, tuple(name for name in COMPARED if name != "labels_CT"))
    assert (before.labels_CT != after.labels_CT).all()
    assert (before.cut_us_B <= boundary_us).all()
    assert (before.uih_time_us_L < boundary_us).all()


@pytest.mark.parametrize("mode", MODES)
def test_generated(mode: HistoryCut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="generated", buckets=3, history_cut=mode, generated=GENERATED)
    check(config, tmp_path, monkeypatch)


@pytest.mark.real_data
@pytest.mark.parametrize("mode", MODES)
def test_movielens(mode: HistoryCut, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = movielens(str(data_dir / "ml-latest-small"))
    config = recipe.data.model_copy(update={"history_cut": mode, "buckets": 4})
    check(config, tmp_path, monkeypatch, one_user_of=3)


@pytest.mark.real_data
@pytest.mark.parametrize("mode", MODES)
def test_kuairand(mode: HistoryCut, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = kuairand(str(data_dir / "kuairand-pure"))
    config = recipe.data.model_copy(update={"history_cut": mode, "buckets": 4})
    check(config, tmp_path, monkeypatch, one_user_of=6)


@pytest.mark.parametrize("mode", MODES)
def test_amazon_electronics(mode: HistoryCut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its negatives are candidates only: many are items that nobody ever has in a history."""
    write_amazon(tmp_path)
    check(
        DataConfig(source="amazon_electronics", path=str(tmp_path), buckets=3, history_cut=mode),
        tmp_path, monkeypatch,
    )  # fmt: skip


def test_the_recipe_of_amazon_electronics_has_days_to_train_on_and_to_test(tmp_path: Path) -> None:
    write_amazon(tmp_path)
    recipe = recipe_of(RefreshConfig(recipe="amazon_electronics", data_dir=str(tmp_path)))
    assert (recipe.model.width, recipe.model.mlp) == (64, (1_024, 512, 256))
    prepare_dataset(recipe.data, tmp_path / "data", recipe.windows)
    dataset = Dataset.open(tmp_path / "data")
    split = dataset.split()
    for first, end in ((split.first_day, split.k), (split.k, split.n), (split.n, split.n + 1)):
        ids_N = dataset.examples(first, end).candidate_ids()
        assert set(dataset.candidates.labels_CT[ids_N, 0].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("per_positive", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_events(mode: HistoryCut, per_positive: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sampled negatives nothing is deleted: a split's end says which later positives are refused."""
    write_shop(tmp_path, per_positive)
    config = DataConfig(source="events", path=str(tmp_path), buckets=3, history_cut=mode)
    check(config, tmp_path, monkeypatch)


def write_amazon(folder: Path) -> None:
    """Lists of nine items; with each position a negative of its own."""
    random = np.random.default_rng(0)
    lines = ["label,user_id,item_id,cate_id,item_history,cate_history"]
    for user in range(30):
        items = random.integers(0, 20, 9)
        for place in range(1, 9):
            history = "^".join(map(str, items[:place])), "^".join(str(item % 4) for item in items[:place])
            lines.append(f"1,{user},{items[place]},{items[place] % 4},{','.join(history)}")
            lines.append(f"0,{user},{1_000 + random.integers(0, 500)},5,{','.join(history)}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def write_shop(folder: Path, per_positive: int) -> None:
    """Six days of a few users in the order of time, with text ids, a value, a category and context."""
    random = np.random.default_rng(1)
    rows = [
        f"c{random.integers(0, 25)},p{random.integers(0, 30)},{1_767_225_600 + second},"
        f"{random.integers(0, 2)},{random.integers(0, 4)},{random.integers(0, 2)},{random.random():.2f}"
        for second in np.sort(random.integers(0, 6 * 86_400, 900))
    ]
    (folder / "shop.csv").write_text("\n".join(["who,what,ts,bought,shelf,device,price", *rows]) + "\n")
    (folder / "events.yaml").write_text(
        "user: who\nitem: what\ntime: ts\ntime_unit: s\nlabel: bought\nvalue: price\ncategory: shelf\n"
        "string_ids: [user, item]\ncontext:\n  device: 2\n"
        + (f"negatives_per_positive: {per_positive}\n" if per_positive else "")
    )
