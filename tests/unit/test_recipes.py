"""The recipes whose hyper-parameters are the paper's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import write_chance_events

from vista.config import RefreshConfig
from vista.data.prepare import prepare_dataset
from vista.errors import InputError
from vista.model.downstream import Downstream
from vista.model.ranker import Ranker
from vista.recipes import recipe_of
from vista.train.jobs import Days, RankerJob, Training
from vista.train.loop import fit


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Own events: 40 users, labels of chance."""
    write_chance_events(tmp_path, users=40, items=30, rows=600)
    return tmp_path


def test_own_events_train_with_the_paper_s_production_column(shop: Path) -> None:
    """Batch norm included, which goes on into the downstream model with its statistics."""
    torch.set_num_threads(1)
    config = RefreshConfig(recipe="simplified_production", data_dir=str(shop))
    recipe = recipe_of(config)
    model, train = recipe.model, recipe.foundation
    assert (model.width, model.heads, model.layers, model.target_layers, model.seeds) == (32, 4, 2, 2, 128)
    assert (model.mlp, model.mlp_batch_norm, model.embedding_init) == ((512, 128, 64), True, 1e-4)
    assert (train.learning_rate, train.max_candidates_per_batch, train.patience) == (1e-3, 128, 1)
    assert (recipe.data.max_uih, recipe.downstream) == (2_000, train)
    prepare_dataset(recipe.data, shop / "data", recipe.windows)
    training = Training(
        RankerJob(
            dataset=shop / "data",
            slot=recipe.foundation_slot,
            model=model,
            train=train,
            max_uih=recipe.data.max_uih,
            days=Days(first=0, valid=3, end=4),
        )
    )
    curve = fit(training.task()).curve
    assert all(np.isfinite(list(point.values.values())).all() for point in curve)
    assert isinstance(training.model, Ranker)
    ours, theirs = training.model.scorer.mlp[1], Downstream.from_foundation(training.model).scorer.mlp[1]
    assert isinstance(ours, torch.nn.BatchNorm1d)
    assert isinstance(theirs, torch.nn.BatchNorm1d)
    assert ours.running_mean is not None
    assert theirs.running_mean is not None
    assert ours.running_mean.any()
    assert torch.equal(ours.running_mean, theirs.running_mean)
    with pytest.raises(InputError, match="mlp_batch_norm with 2 workers"):
        recipe_of(config.model_copy(update={"workers": 2}))
