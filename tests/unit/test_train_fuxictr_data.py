"""What FuxiCTR is given is what our models read: the same histories, candidates and labels."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from training_data import prepare_small

from vista.data.batches import gather
from vista.data.dataset import Dataset
from vista.train.experiments.blocks import UserSplit
from vista.train.experiments.grids import kuairand
from vista.train.experiments.splits import Rows
from vista.train.fuxictr_data import recipe_of, write_fuxictr_data


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(prepare_small(tmp_path_factory.mktemp("data") / "set", history_cut="event"))


@pytest.mark.parametrize("actions", [False, True])
def test_the_files_hold_the_rows(dataset: Dataset, tmp_path: Path, actions: bool) -> None:
    rows = Rows.of(dataset, UserSplit(parts=10))
    write_fuxictr_data(tmp_path / "peer", dataset, rows, {}, actions=actions)
    items = pl.read_parquet(tmp_path / "peer" / "items.parquet")
    assert items["item_index"].to_list() == list(range(items.height))
    histories = pl.read_parquet(tmp_path / "peer" / "users.parquet")["full_item_seq"].to_list()
    for name, part in (("train", rows.train), ("valid", rows.valid), ("test", rows.test)):
        found = pl.read_parquet(tmp_path / "peer" / f"{name}.parquet")
        batch = gather(part, np.arange(len(part)), max_uih=1_000)
        row_L = [
            row
            for user, length in found.select("user_index", "seq_len").rows()
            for row in histories[user][:length]
        ]
        assert 0 not in row_L, "row 0 is padding"
        assert items["video_id"][row_L].to_list() == batch.uih_item_L.tolist()
        assert items["video_id"][found["item_index"]].to_list() == batch.candidate_item_C.tolist()
        assert found["label"].to_list() == batch.labels_CT[:, 0].tolist()
        assert found["user_id"].to_list() == batch.user_row_B.tolist()
        if actions:
            code_L = items["actions"][row_L].to_numpy()
            pairs = set(zip(code_L.tolist(), batch.uih_action_L.tolist(), strict=True))
            assert len(pairs) == len(set(code_L.tolist())) == len(set(batch.uih_action_L.tolist()))
            (unknown,) = set(items["actions"][found["item_index"]])
            assert unknown not in code_L


def test_unseen_ids_are_zero_and_sizes_fit(tmp_path: Path) -> None:
    """What trains on day 0 of five users has not met every item."""
    dataset = Dataset.open(prepare_small(tmp_path / "set", users=5, history_cut="event"))
    every = dataset.examples(0, 99)
    rows = Rows(every.where(every.day_E == 0), every.where(every.day_E == 1), every.where(every.day_E > 1))
    write_fuxictr_data(tmp_path / "peer", dataset, rows, {}, actions=True)
    feature_map = json.loads((tmp_path / "peer" / "feature_map.json").read_text())
    features = {name: feature for one in feature_map["features"] for name, feature in one.items()}
    assert features["video_id"]["vocab_size"] < 1 + dataset.info.items
    items = pl.read_parquet(tmp_path / "peer" / "items.parquet")
    for name in ("video_id", "actions"):
        assert items[name].max() < features[name]["vocab_size"]
    candidates = pl.read_parquet(tmp_path / "peer" / "test.parquet")["item_index"]
    assert 0 in items["video_id"][candidates]


def test_both_sides_have_one_recipe() -> None:
    block = kuairand(Path("data")).blocks[0]
    arm = next(arm for arm in block.arms if arm.name == "din")
    recipe = recipe_of(block, arm)
    assert (recipe["batch_size"], recipe["embedding_dim"], recipe["max_len"]) == (512, 32, 200)
    assert arm.train.epochs == 1, "the peer's program trains one epoch"
