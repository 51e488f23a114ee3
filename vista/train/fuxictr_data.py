"""A public split as FuxiCTR's loader for long histories reads it: the peer of `vista.train.bench`.

Shape suffixes: N events, C candidates, E examples, U users, R rows of the item table.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vista.data.dataset import Dataset
from vista.data.schema import Examples, FeatureSpec
from vista.runs import write_whole
from vista.train.experiments.blocks import Arm, Block
from vista.train.experiments.splits import Rows

LABEL = "label"
PLACES = ("user_index", "item_index", "seq_len")
"""Columns of a row that say where its user, history and item are; no features."""


def recipe_of(block: Block, arm: Arm) -> dict[str, Any]:
    """What of our recipe FuxiCTR is told."""
    return {
        "batch_size": arm.train.max_candidates_per_batch,
        "embedding_dim": arm.model.width,
        "mlp": arm.model.mlp,
        "max_len": block.data.max_uih,
        "learning_rate": arm.train.learning_rate,
        "final_learning_rate_fraction": arm.train.final_learning_rate_fraction,
    }


def write_fuxictr_data(
    folder: Path, dataset: Dataset, rows: Rows, recipe: dict[str, Any], *, actions: bool
) -> None:
    """Items, users with their whole sequences, the rows of each part, the features and the recipe.

    A row names its user and how much of the user's sequence precedes it. With `actions` an item's row stands
    for an (item, actions) pair. Ids that the training rows do not know are 0, as in our models.
    """
    folder.mkdir(parents=True)
    spec = dataset.spec(rows.known_until_us())
    items = _Items.of(dataset, spec, actions)
    items.frame().write_parquet(folder / "items.parquet")
    events = dataset.events
    start_U = np.flatnonzero(events.user_starts() == np.arange(len(events.user_id_N)))
    sequences = [part.tolist() for part in np.split(items.row_N, start_U[1:])]
    pl.DataFrame({"full_item_seq": sequences}).write_parquet(folder / "users.parquet")
    for name, part in (("train", rows.train), ("valid", rows.valid), ("test", rows.test)):
        _rows(part, start_U, items.row_C, spec).write_parquet(folder / f"{name}.parquet")
    features: dict[str, dict[str, str | int]] = {
        **{name: {"type": "meta"} for name in PLACES},
        "user_id": _categorical("user", spec.num_users),
        "video_id": _categorical("item", spec.num_items),
    }
    if items.action_R is not None:
        features["actions"] = _categorical("item", int(items.action_R.max()) + 1)
    listed = [{name: feature} for name, feature in features.items()]
    feature_map = {"dataset_id": folder.name, "labels": [LABEL], "features": listed}
    write_whole(folder / "feature_map.json", json.dumps(feature_map, indent=2))
    write_whole(folder / "recipe.json", json.dumps(recipe, indent=2))


@dataclass(frozen=True, slots=True)
class _Items:
    """The item table, row 0 of which is padding, and which of its rows each event and candidate is."""

    item_R: NDArray[np.int64]
    action_R: NDArray[np.int64] | None
    row_N: NDArray[np.int64]
    row_C: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, spec: FeatureSpec, actions: bool) -> "_Items":
        events, candidates = dataset.events, dataset.candidates
        item = np.concatenate([events.item_row_N, candidates.item_row_C]).astype(np.int64)
        item[item >= spec.num_items] = 0
        mask_N = events.action_mask_N.astype(np.int64)
        unknown = 1 << len(spec.actions)  # a candidate's: no event has it
        mask = np.concatenate([mask_N, np.full(len(candidates.item_row_C), unknown)])
        masks, action = np.unique(mask, return_inverse=True)
        pair = item * len(masks) + (action if actions else 0)
        pair_R, row = np.unique(pair, return_inverse=True)
        row_N, row_C = np.split(row + 1, [len(mask_N)])
        item_R = np.append(0, pair_R // len(masks))
        action_R = np.append(0, 1 + pair_R % len(masks)) if actions else None
        return cls(item_R, action_R, row_N, row_C)

    def frame(self) -> pl.DataFrame:
        columns = {"item_index": np.arange(len(self.item_R)), "video_id": self.item_R}
        return pl.DataFrame(columns | ({} if self.action_R is None else {"actions": self.action_R}))


def _rows(
    part: Examples, start_U: NDArray[np.int64], row_C: NDArray[np.int64], spec: FeatureSpec
) -> pl.DataFrame:
    """One row per candidate; in `event` mode an example has one."""
    ids_E = part.candidate_ids()
    assert len(ids_E) == len(part), "history_cut is event"
    return pl.DataFrame(
        {
            "user_index": np.searchsorted(start_U, part.history_start_E),
            "item_index": row_C[ids_E],
            "seq_len": part.history_length_E,
            "user_id": np.where(part.user_row_E < spec.num_users, part.user_row_E, 0),
            LABEL: part.candidates.labels_CT[ids_E, 0].astype(np.int64),
        }
    )


def _categorical(source: str, rows: int) -> dict[str, str | int]:
    return {"type": "categorical", "source": source, "vocab_size": rows}
