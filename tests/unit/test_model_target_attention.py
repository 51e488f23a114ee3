"""Stage 2 against attention over [summary ; recent tail ; candidate] written down candidate by candidate."""

import pytest
import torch
from model_batches import CONFIG
from torch import Tensor

from vista.config import ModelConfig
from vista.model.inputs import Uih
from vista.model.target_attention import TargetAttention, TargetBlock

TAIL = 3
WITH_TAIL = CONFIG.model_copy(update={"recent_tail": TAIL})


def _block_on_sequence(block: TargetBlock, x_ND: Tensor, readable_NN: Tensor) -> Tensor:
    """The block as an ordinary masked transformer block on one sequence."""
    heads = []
    normal = block.norm(x_ND)
    q, k, v = block.query(normal), block.key(normal), block.value(normal)
    width = q.shape[1] // block.heads
    for head in range(block.heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / width**0.5
        heads.append(scores.masked_fill(~readable_NN, float("-inf")).softmax(-1) @ v[:, part])
    x_ND = x_ND + block.output(torch.cat(heads, dim=1))
    return x_ND + block.feed_forward(x_ND)


def _uih(lengths: list[int]) -> Uih:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = int(offsets[-1])
    user_L = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    none = torch.zeros(rows, 0)
    zeros_L, zeros_B = torch.zeros(rows, dtype=torch.int64), torch.zeros(len(offsets) - 1, dtype=torch.int64)
    return Uih(torch.randn(rows, CONFIG.width), none, zeros_L, user_L, offsets, zeros_B, zeros_B)


def _tail_rows(model: TargetAttention, uih: Uih, user: int) -> Tensor:
    """The tail of one user, written down: newest first, without padding."""
    if model.tail is None:
        return torch.zeros(0, CONFIG.width)
    own = uih.tokens_LD[uih.seq_offsets[user] : uih.seq_offsets[user + 1]].flip(0)[:TAIL]
    return model.tail.norm(own) + model.tail.place.weight[: len(own)]


@pytest.mark.parametrize("config", [CONFIG, WITH_TAIL], ids=["no tail", "tail"])
def test_equals_a_masked_transformer_per_candidate(config: ModelConfig) -> None:
    """Users with more events than the tail takes, with fewer, and with none."""
    torch.manual_seed(0)
    model, uih = TargetAttention(config, 8), _uih([5, 1, 0])
    summary_BSD = torch.randn(3, CONFIG.seeds, CONFIG.width)
    candidates_CI, user_C = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 2])
    found = model(candidates_CI, summary_BSD, uih, user_C)
    for candidate, user in enumerate(user_C.tolist()):
        own = model.entry(model.project(candidates_CI[candidate : candidate + 1]))
        x_ND = torch.cat([summary_BSD[user], _tail_rows(model, uih, user), own])
        readable = torch.ones(len(x_ND), len(x_ND), dtype=torch.bool)
        readable[:-1, -1] = False  # summaries and tail do not read the candidate
        for block in model.blocks:
            x_ND = _block_on_sequence(block, x_ND, readable)
        torch.testing.assert_close(found[candidate], model.norm(x_ND[-1]), rtol=1e-4, atol=1e-5)


def test_only_the_tail_s_events_are_read() -> None:
    torch.manual_seed(0)
    model, uih = TargetAttention(WITH_TAIL, 8), _uih([TAIL + 2])
    summary_BSD, candidates_CI, user_C = torch.randn(1, 4, 16), torch.randn(2, 8), torch.tensor([0, 0])
    before = model(candidates_CI, summary_BSD, uih, user_C)
    uih.tokens_LD[:2] += 1
    assert torch.equal(model(candidates_CI, summary_BSD, uih, user_C), before)
    uih.tokens_LD[2] += torch.randn(CONFIG.width)
    assert not torch.equal(model(candidates_CI, summary_BSD, uih, user_C), before)


def test_a_long_history_keeps_nothing_for_the_tail() -> None:
    """Beside the tokens a backward pass needs the tail's rows only, not all that the user has."""
    torch.manual_seed(0)
    model, uih = TargetAttention(WITH_TAIL, 8), _uih([20_000, 0])
    uih.tokens_LD.requires_grad_()
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    assert model.tail is not None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        tail_BRD, _ = model.tail(uih)
    kept.pop(uih.tokens_LD.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) < 4_096
    (d_tokens_LD,) = torch.autograd.grad(tail_BRD.square().sum(), uih.tokens_LD)
    assert d_tokens_LD.any(dim=1).nonzero().flatten().tolist() == [19_997, 19_998, 19_999]


def test_users_without_any_event_have_no_tail() -> None:
    model = TargetAttention(WITH_TAIL, 8)
    assert model.tail is not None
    tail_BRD, known_BR = model.tail(_uih([0, 0]))
    assert not known_BR.any()
    assert torch.equal(tail_BRD, model.tail.place.weight.expand(2, TAIL, CONFIG.width))


def test_it_reads_the_summary() -> None:
    torch.manual_seed(0)
    model = TargetAttention(CONFIG, 8)
    candidates_CI, user_C = torch.randn(2, 8), torch.tensor([0, 1])
    summary_BSD = torch.randn(2, CONFIG.seeds, CONFIG.width)
    swapped = model(candidates_CI, summary_BSD.flip(0), None, user_C)
    assert (model(candidates_CI, summary_BSD, None, user_C) - swapped).abs().max() > 1e-2
