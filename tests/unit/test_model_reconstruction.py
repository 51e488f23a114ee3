"""The reconstruction loss: causal, a mean, and lower with one's own summary."""

import dataclasses
import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch
from torch import Tensor

from vista.config import AttentionName, ModelConfig
from vista.data.schema import Batch
from vista.model.inputs import TensorBatch, tensors
from vista.model.ranker import Ranker, VistaHistory
from vista.model.reconstruction import Reconstruction


def _vista(config: ModelConfig = CONFIG) -> tuple[Ranker, VistaHistory, Reconstruction]:
    torch.manual_seed(0)
    model = Ranker(config, SPEC, "vista")
    assert isinstance(model.history, VistaHistory)
    assert model.history.reconstruction is not None
    return model, model.history, model.history.reconstruction


@pytest.mark.parametrize("changed", [0, 3, 6])
def test_a_token_moves_only_later_predictions(changed: int) -> None:
    """Changing u_j moves v_i only for i >= j."""
    _, _, reconstruction = _vista()
    summary, tokens = torch.randn(2, CONFIG.seeds, CONFIG.width), torch.randn(2, 7, CONFIG.width)
    before = reconstruction.decode(summary, tokens)
    tokens[1, changed] += 1
    moved = (reconstruction.decode(summary, tokens) - before).abs().amax(dim=(0, 2))
    assert bool((moved[:changed] == 0).all())
    assert bool((moved[changed:] > 0).all())


def _by_hand(model: Ranker, batch: TensorBatch, window: int) -> Tensor:
    """The formula, user by user and event by event."""
    _, history, reconstruction = model, model.history, model.history.reconstruction  # type: ignore[union-attr]
    uih = model.uih(batch)
    summary, ordered = history.summariser(uih), history.summariser.order(uih)
    squares = []
    for user in range(batch.num_candidates.numel()):
        start, end = (int(x) for x in batch.seq_offsets[user : user + 2])
        rows = torch.arange(max(start, end - window), end)
        v = reconstruction.decode(summary[user : user + 1], ordered[rows].unsqueeze(0))[0]
        for i in range(rows.numel() - 1):
            token = uih.tokens_LD[rows[i + 1]]
            squares.append((v[i] - token / token.square().mean().sqrt()).square().sum())
    return torch.stack(squares).mean()


@pytest.mark.parametrize("window", [10, 1_024])
def test_it_is_a_mean_over_the_newest_window(window: int) -> None:
    model, _, _ = _vista(CONFIG.model_copy(update={"reconstruction_window": window}))
    batch = tensors(make_batch([5, 0, 1, 40, 17], [1, 1, 1, 1, 1]), "cpu")
    found = model(batch).reconstruction_loss
    assert found is not None
    torch.testing.assert_close(found, _by_hand(model, batch, window), rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_of_what_is_older_than_the_window() -> None:
    """The numbers that wait for the backward pass are the same for 100 and for 10,000 events."""
    model, history, reconstruction = _vista(CONFIG.model_copy(update={"reconstruction_window": 32}))

    def kept_numbers(events: int) -> int:
        uih = model.uih(tensors(make_batch([events], [0]), "cpu"))
        with torch.no_grad():
            summary, ordered = history.summariser(uih), history.summariser.order(uih)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.untyped_storage().nbytes()) or x, lambda x: x
        ):
            reconstruction(summary, ordered.requires_grad_(), uih)
        return sum(kept)

    assert 0 < kept_numbers(10_000) == kept_numbers(100)


def test_the_target_takes_no_gradient() -> None:
    """Otherwise the embeddings would collapse onto what is easy to predict."""
    model, history, reconstruction = _vista()
    uih = model.uih(tensors(make_batch([6], [0]), "cpu"))
    leaf = dataclasses.replace(uih, tokens_LD=uih.tokens_LD.detach().requires_grad_())
    value = reconstruction(history.summariser(uih), history.summariser.order(uih), leaf)
    assert torch.autograd.grad(value, leaf.tokens_LD, allow_unused=True) == (None,)


def test_it_is_not_computed_outside_training_or_at_weight_0() -> None:
    model, _, _ = _vista()
    batch = tensors(make_batch([6], [1]), "cpu")
    assert model.eval()(batch).reconstruction_loss is None
    without = Ranker(CONFIG.model_copy(update={"reconstruction_weight": 0.0}), SPEC, "vista")
    assert without(batch).reconstruction_loss is None


def _repeated_items(users: int, seed: int) -> Batch:
    """Histories of 12 events that repeat four items of the user's own: the first do not tell the rest."""
    draw = np.random.default_rng(seed)
    batch = make_batch([12] * users, [0] * users, seed=seed)
    own = np.stack([draw.choice(np.arange(1, SPEC.num_items), 4, replace=False) for _ in range(users)])
    items = np.take_along_axis(own, draw.integers(0, 4, (users, 12)), axis=1).flatten()
    zero = np.zeros(users * 12, np.int64)
    return dataclasses.replace(
        batch, uih_item_L=items, uih_category_L=zero, uih_action_L=zero, uih_value_L=zero
    )


@pytest.mark.parametrize("attention", get_args(AttentionName))
def test_another_user_s_summary_reconstructs_worse(attention: AttentionName) -> None:
    """At least 5% more error on users that were not trained on."""
    changes = {"layers": 1, "seeds": 8, "attention": attention}
    model, history, reconstruction = _vista(CONFIG.model_copy(update=changes))
    fixed = [model.scorer, model.tokens]  # the targets do not move
    for parameter in itertools.chain(*(module.parameters() for module in fixed)):
        parameter.requires_grad_(False)
    model.tokens.value.weight.zero_()  # a token is its item
    optimiser = torch.optim.Adam(history.parameters(), lr=5e-3)
    for step in range(400):
        uih = model.uih(tensors(_repeated_items(32, step), "cpu"))
        value = reconstruction(history.summariser(uih), history.summariser.order(uih), uih)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    with torch.no_grad():
        uih = model.uih(tensors(_repeated_items(256, 10_000), "cpu"))
        summary, ordered = history.summariser(uih), history.summariser.order(uih)
        own, other = (float(reconstruction(s, ordered, uih)) for s in (summary, summary.roll(1, 0)))
    assert other >= 1.05 * own, (own, other)
