"""Hand-made batches and states for the tests of the model."""

from collections.abc import Sequence

import numpy as np
import torch

from vista.config import ModelConfig
from vista.data.schema import Batch, ContextColumn, FeatureSpec
from vista.model.incremental import SummaryState

SPEC = FeatureSpec(
    num_items=50,
    num_users=20,
    num_categories=7,
    num_value_buckets=5,
    actions=("click", "like"),
    context=(ContextColumn(name="tab", cardinality=4),),
    dense=("item_log_count", "item_rate_click"),
    tasks=("click", "like"),
)

CONFIG = ModelConfig(width=16, heads=2, layers=2, seeds=4, target_layers=2, mlp=(32,), embedding_init=0.1)


def make_batch(lengths: Sequence[int], candidates: Sequence[int], *, seed: int = 0) -> Batch:
    """Users with the given numbers of events and candidates; everything else is drawn with `seed`."""
    draw = np.random.default_rng(seed)
    users, rows, count = len(lengths), sum(lengths), sum(candidates)
    times = [np.sort(draw.integers(0, 10**12, length)) for length in lengths]
    return Batch(
        user_id_B=np.arange(users),
        user_row_B=draw.integers(1, SPEC.num_users, users),
        cut_us_B=np.full(users, 10**12 + 1),
        seq_offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        uih_item_L=draw.integers(1, SPEC.num_items, rows),
        uih_category_L=draw.integers(1, SPEC.num_categories, rows),
        uih_action_L=draw.integers(0, 4, rows),
        uih_value_L=draw.integers(0, SPEC.num_value_buckets, rows),
        uih_time_us_L=np.concatenate([np.zeros(0, np.int64), *times]),
        num_candidates=np.asarray(candidates, dtype=np.int64),
        candidate_item_C=draw.integers(1, SPEC.num_items, count),
        candidate_category_C=draw.integers(1, SPEC.num_categories, count),
        candidate_context_CK=draw.integers(0, 4, (count, 1)),
        candidate_dense_CF=draw.normal(size=(count, 2)).astype(np.float32),
        candidate_id_C=np.arange(count),
        labels_CT=draw.integers(0, 2, (count, 2)).astype(np.float32),
    )


def golden_state() -> SummaryState:
    """The state of tests/golden/state.bin: user 42, two actions, one head of 2 x 3."""
    return SummaryState(
        seq_B=torch.tensor([199]),
        event_time_us_B=torch.tensor([1_699_999_999_000_000]),
        weight_B=torch.tensor([200.0], dtype=torch.float64),
        actions_BA=torch.tensor([[120.0, 3.0]], dtype=torch.float64),
        kv_BHDE=torch.tensor([[[[0.5, -0.25, 1.0], [0.0, 1.5, -2.0]]]], dtype=torch.float64),
    )
