"""Each baseline against its definition, written down candidate by candidate; and that it learns."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_batches import CONFIG, SPEC, make_batch
from torch import Tensor

from kernels import silu_attention
from vista.config import ModelConfig
from vista.data.schema import Batch
from vista.evaluate.metrics import auc
from vista.model.baselines.attention import softmax_attention
from vista.model.baselines.chunks import chunks_of
from vista.model.baselines.din import Din
from vista.model.baselines.hstu import Hstu, HstuLayer
from vista.model.baselines.pooled import MeanPool, TwoTower, pooled
from vista.model.baselines.transformer import Mha, SasRec, TransformerBlock
from vista.model.inputs import Uih, length_features, tensors
from vista.model.ranker import Ranker, SlotName, loss

LENGTHS, CANDIDATES = [9, 0, 40, 17], [3, 2, 1, 0]
BASELINES = [slot for slot in get_args(SlotName) if not slot.startswith("vista")]


def _inputs(slot: SlotName, batch: Batch | None = None) -> tuple[Ranker, Uih, Tensor, Tensor]:
    """A model in double precision, and what its slot reads."""
    torch.manual_seed(0)
    model = Ranker(CONFIG, SPEC, slot).double().eval()
    found = tensors(batch or make_batch(LENGTHS, CANDIDATES), "cpu")
    return model, model.uih(found), model.scorer.embed(found), found.candidate_user_C


def _rows(uih: Uih, user: int) -> slice:
    return slice(int(uih.seq_offsets[user]), int(uih.seq_offsets[user + 1]))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(1, (heads, -1))


def test_din_is_its_attention_unit_pair_by_pair() -> None:
    """An MLP of [q, k, q - k, q * k] weighs each event, once for all and once per action."""
    model, uih, candidates_CI, user_C = _inputs("din")
    din = model.history
    assert isinstance(din, Din)
    # of [q, k, q - k, q * k]: any split of the weights between q, k and q - k is the same function
    of_difference = torch.randn(din.of_query.weight.shape, dtype=torch.float64)
    first = torch.cat(
        [
            din.of_query.weight - of_difference,
            din.of_token.weight + of_difference,
            of_difference,
            din.of_product.weight,
        ],
        dim=1,
    )
    expected = []
    for q, user in zip(din.query(candidates_CI), user_C.tolist(), strict=True):
        interest = torch.zeros(1 + len(SPEC.actions), CONFIG.width, dtype=torch.float64)
        for k, actions in zip(uih.tokens_LD[_rows(uih, user)], uih.actions_LA[_rows(uih, user)], strict=True):
            units = F.linear(torch.cat([q, k, q - k, q * k]), first, din.of_query.bias).relu()
            interest += torch.outer(din.weigh(units) * F.pad(actions, (1, 0), value=1.0), k)
        expected.append(torch.cat([interest.flatten(), length_features(uih)[user]]))
    torch.testing.assert_close(din(uih, candidates_CI, user_C), torch.stack(expected))


def test_the_pool_is_a_mean_per_action() -> None:
    model, uih, candidates_CI, user_C = _inputs("mean_pool")
    assert isinstance(model.history, MeanPool)
    found = model.history(uih, candidates_CI, user_C)
    for candidate, user in enumerate(user_C.tolist()):
        tokens, actions = uih.tokens_LD[_rows(uih, user)], uih.actions_LA[_rows(uih, user)]
        parts = [tokens, *(tokens[actions[:, action] == 1] for action in range(len(SPEC.actions)))]
        means = [part.mean(0) if len(part) else torch.zeros(CONFIG.width) for part in parts]
        torch.testing.assert_close(found[candidate], torch.cat([*means, length_features(uih)[user]]))


def test_the_towers_meet_in_their_product_only() -> None:
    model, uih, candidates_CI, user_C = _inputs("ttsn")
    towers = model.history
    assert isinstance(towers, TwoTower)
    assert towers.user is not None
    user, item, product = towers(uih, candidates_CI, user_C).split(CONFIG.width, dim=1)
    ids = towers.user(uih.user_row_B)
    torch.testing.assert_close(user, towers.user_tower(torch.cat([pooled(uih), ids], dim=1))[user_C])
    torch.testing.assert_close(item, towers.item_tower(candidates_CI))
    torch.testing.assert_close(product, user * item)


def _transformer_by_hand(block: TransformerBlock, x_ND: Tensor, reads_NN: Tensor) -> Tensor:
    q, k, v = (_heads(x, block.heads) for x in block.query_key_value(block.norm(x_ND)).chunk(3, dim=1))
    scores = torch.einsum("ihe,jhe->hij", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~reads_NN, -torch.inf).softmax(-1)
    x_ND = x_ND + block.attended(torch.einsum("hij,jhe->ihe", weights, v).flatten(1))
    return x_ND + block.feed_forward(x_ND)


def test_sasrec_is_a_causal_transformer_with_the_candidate_last() -> None:
    model, uih, candidates_CI, user_C = _inputs("sasrec")
    sasrec = model.history
    assert isinstance(sasrec, SasRec)
    found = sasrec(uih, candidates_CI, user_C)
    for candidate, user in enumerate(user_C.tolist()):
        own = sasrec.entry(sasrec.project(candidates_CI[candidate : candidate + 1])) + sasrec.next_position_D
        x = torch.cat([sasrec.order(uih)[_rows(uih, user)], own])
        for block in sasrec.blocks:
            x = _transformer_by_hand(block, x, torch.ones(len(x), len(x)).tril().bool())
        newest = x[-2] if len(x) > 1 else torch.zeros_like(x[0])
        expected = torch.cat([sasrec.norm(x[-1]), sasrec.norm(newest), length_features(uih)[user]])
        torch.testing.assert_close(found[candidate], expected)


def test_mha_reads_what_the_history_s_own_attention_gave() -> None:
    model, uih, candidates_CI, user_C = _inputs("mha")
    mha = model.history
    assert isinstance(mha, Mha)
    found = mha(uih, candidates_CI, user_C)
    for candidate, user in enumerate(user_C.tolist()):
        x = mha.order(uih)[_rows(uih, user)]
        for block in mha.blocks:
            x = _transformer_by_hand(block, x, torch.ones(len(x), len(x)).bool())
        x = torch.cat([x, mha.entry(mha.project(candidates_CI[candidate : candidate + 1]))])
        x = _transformer_by_hand(mha.last, x, torch.ones(len(x), len(x)).bool())
        expected = torch.cat([mha.norm(x[-1]), length_features(uih)[user]])
        torch.testing.assert_close(found[candidate], expected)


def test_hstu_s_candidates_are_rows_of_the_op() -> None:
    """The layers over [uih ; candidates], every row by `kernels.silu_attention`, as the op defines it."""
    model, uih, candidates_CI, user_C = _inputs("hstu")
    hstu = model.history
    assert isinstance(hstu, Hstu)
    num_candidates = torch.bincount(user_C, minlength=len(LENGTHS))
    lengths = uih.seq_offsets.diff()
    candidate_M = torch.cat(
        [torch.arange(n + c) >= n for n, c in zip(lengths.tolist(), num_candidates.tolist(), strict=True)]
    )
    user_M = torch.arange(len(LENGTHS)).repeat_interleave(lengths + num_candidates)
    offsets = F.pad((lengths + num_candidates).cumsum(0), (1, 0))
    x_MD = torch.empty(len(user_M), CONFIG.width, dtype=torch.float64)
    x_MD[~candidate_M] = hstu.entry(uih.tokens_LD)
    x_MD[candidate_M] = hstu.entry(hstu.project(candidates_CI))
    time_us_M = uih.cut_us_B[user_M]
    time_us_M[~candidate_M] = uih.time_us_L
    position_M = (torch.arange(len(user_M)) - offsets[user_M]).minimum(lengths[user_M])
    for layer in hstu.layers:
        assert isinstance(layer, HstuLayer)

        def bias(i: Tensor, j: Tensor, layer: HstuLayer = layer) -> Tensor:
            found = layer.bias(position_M[i] - position_M[j], time_us_M[i] - time_us_M[j])
            return found.unsqueeze(-1)

        u, v, q, k = layer.uvqk(layer.norm(x_MD)).chunk(4, dim=1)
        q, k, v = (_heads(x, CONFIG.heads) for x in (q * (CONFIG.width // CONFIG.heads) ** -0.5, k, v))
        read = silu_attention(q, k, v, offsets, num_candidates, causal=True, bias=bias).flatten(1)
        gate = F.silu(u)
        x_MD = x_MD + layer.output(torch.cat([gate, read, layer.read_norm(read) * gate], dim=1))
    expected = torch.cat([hstu.norm(x_MD[candidate_M]), length_features(uih)[user_C]], dim=1)
    torch.testing.assert_close(hstu(uih, candidates_CI, user_C), expected)


def test_hstu_reads_the_times() -> None:
    batch = make_batch(LENGTHS, CANDIDATES)
    later = dataclasses.replace(batch, cut_us_B=batch.cut_us_B + 10**12)
    before, after = (module(*rest) for model, *rest in (_inputs("hstu", b) for b in (batch, later))
                     for module in [model.history])  # fmt: skip
    has_events = torch.tensor(LENGTHS)[_inputs("hstu")[3]] > 0
    assert torch.equal((before != after).any(1), has_events)


@pytest.mark.parametrize("kind", ["softmax", "sasrec", "hstu"])
def test_an_event_moves_no_earlier_row(kind: str) -> None:
    model, uih, _, _ = _inputs("hstu" if kind == "hstu" else "sasrec")
    x_LD = uih.tokens_LD.detach().clone()
    changed_LD = x_LD.clone()
    changed_LD[20] += 1.0  # the twelfth event of the third user, rows 9 .. 48
    if kind == "softmax":
        rows = [
            softmax_attention(*[_heads(x, 2)] * 3, uih.seq_offsets, causal=True) for x in (x_LD, changed_LD)
        ]
    elif kind == "sasrec":
        assert isinstance(model.history, SasRec)
        rows = [model.history.blocks[0](x, uih.seq_offsets) for x in (x_LD, changed_LD)]
    else:
        assert isinstance(model.history, Hstu)
        rows = [model.history.layers[0](x, uih) for x in (x_LD, changed_LD)]
    moved = (rows[0] != rows[1]).flatten(1).any(1)
    assert moved.nonzero().flatten().tolist() == list(range(20, 49))


def test_the_newest_rows_alone_are_those_of_the_whole_history() -> None:
    model, uih, _, _ = _inputs("sasrec")
    assert isinstance(model.history, SasRec)
    block = model.history.blocks[0]
    assert isinstance(block, TransformerBlock)
    all_LD = block(uih.tokens_LD, uih.seq_offsets)
    for found_D, user in zip(block.newest(uih.tokens_LD, uih.seq_offsets), range(len(LENGTHS)), strict=True):
        rows = all_LD[_rows(uih, user)]
        torch.testing.assert_close(found_D, rows[-1] if len(rows) else torch.zeros_like(found_D))


def test_events_read_all_events_where_nothing_is_causal() -> None:
    _, uih, _, _ = _inputs("mha")
    x_LHE = _heads(uih.tokens_LD, 2)
    found = softmax_attention(x_LHE, x_LHE, x_LHE, uih.seq_offsets, causal=False)
    for user in range(len(LENGTHS)):
        x = x_LHE[_rows(uih, user)]
        weights = (torch.einsum("ihe,jhe->hij", x, x) / x.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(found[_rows(uih, user)], torch.einsum("hij,jhe->ihe", weights, x))


@pytest.mark.parametrize("slot", BASELINES)
def test_a_user_does_not_depend_on_who_shares_the_batch(slot: SlotName) -> None:
    """1e-6: a longer neighbour changes how many zeros are added, and so the order of a sum."""
    torch.manual_seed(0)
    model = Ranker(CONFIG, SPEC, slot).eval()
    batch = make_batch([10_000, 33], [1, 2])
    alone = make_batch([33], [2])
    for field in dataclasses.fields(Batch):
        whole, part = getattr(batch, field.name), getattr(alone, field.name)
        if field.name not in ("seq_offsets", "candidate_id_C"):
            part[...] = whole[-len(part) :]
    with torch.no_grad():
        together, apart = (model(tensors(one, "cpu")).logits_CT for one in (batch, alone))
    torch.testing.assert_close(together[1:], apart, rtol=0, atol=1e-6)


ITEMS_OF_A_GROUP = 20


def _planted(users: int, seed: int) -> Batch:
    """All of a user's events are of one of two groups of items; users of the second like four candidates in
    five, users of the first one in five."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 12, users)
    batch = make_batch(lengths.tolist(), [2] * users, seed=seed)
    group_B = draw.integers(0, 2, users)
    item_L = 1 + draw.integers(0, ITEMS_OF_A_GROUP, len(batch.uih_item_L))
    batch.uih_item_L[:] = item_L + ITEMS_OF_A_GROUP * np.repeat(group_B, lengths)
    liked_C = np.repeat(group_B, 2) == (draw.random(2 * users) < 0.8)
    batch.labels_CT[:] = liked_C[:, None]
    return batch


def _learned(slot: SlotName) -> float:
    """AUC on new users after a short training."""
    torch.manual_seed(0)
    config = ModelConfig(width=16, heads=2, seeds=4, mlp=(32,), use_user_id=False, embedding_init=0.1)
    model = Ranker(config, SPEC, slot)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(120):
        batch = tensors(_planted(100, step), "cpu")
        optimiser.zero_grad()
        (loss(model(batch), batch.labels_CT) / len(batch.labels_CT)).backward()
        optimiser.step()
    test = _planted(1_000, 10_000)
    with torch.no_grad():
        scores = model.eval()(tensors(test, "cpu")).logits_CT[:, 0].sigmoid().numpy()
    return auc(test.labels_CT[:, 0], scores)


@pytest.mark.parametrize("slot", get_args(SlotName))
def test_it_learns_what_only_the_history_tells(slot: SlotName) -> None:
    """The oracle's AUC is .80; without the history there is nothing to learn."""
    area = _learned(slot)
    assert area < 0.53 if slot == "no_history" else area > 0.75, area


def test_padding_is_a_row_of_the_same_user() -> None:
    """Of another's, what is not finite there would cross over: it is multiplied by 0, which NaN survives."""
    offsets, user_C = torch.tensor([0, 3, 3, 12]), torch.tensor([2, 1, 0])
    reader_M, row_MR, known_MR = chunks_of(offsets, user_C)
    first_M, end_M = (x[user_C[reader_M]].unsqueeze(1) for x in (offsets[:-1], offsets[1:]))
    assert bool(((first_M <= row_MR) & (row_MR < end_M)).all())
    assert row_MR[known_MR].tolist() == [*range(3, 12), *range(3)]
