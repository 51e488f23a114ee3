"""Stage 2 against attention over [summary ; candidate] written down candidate by candidate."""

import torch
from model_batches import CONFIG
from torch import Tensor

from vista.model.target_attention import TargetAttention, TargetBlock


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


def test_equals_a_masked_transformer_per_candidate() -> None:
    torch.manual_seed(0)
    model = TargetAttention(CONFIG, 8)
    summary_BSD = torch.randn(2, CONFIG.seeds, CONFIG.width)
    candidates_CI, user_C = torch.randn(5, 8), torch.tensor([0, 0, 0, 1, 1])
    found = model(candidates_CI, summary_BSD, user_C)
    seeds = CONFIG.seeds
    readable = torch.ones(seeds + 1, seeds + 1, dtype=torch.bool)
    readable[:seeds, seeds] = False  # summaries do not read the candidate
    for candidate in range(5):
        own = model.entry(model.project(candidates_CI[candidate : candidate + 1]))
        x_ND = torch.cat([summary_BSD[user_C[candidate]], own])
        for block in model.blocks:
            x_ND = _block_on_sequence(block, x_ND, readable)
        torch.testing.assert_close(found[candidate], model.norm(x_ND[-1]), rtol=1e-4, atol=1e-5)


def test_it_reads_the_summary() -> None:
    torch.manual_seed(0)
    model = TargetAttention(CONFIG, 8)
    candidates_CI, user_C = torch.randn(2, 8), torch.tensor([0, 1])
    summary_BSD = torch.randn(2, CONFIG.seeds, CONFIG.width)
    swapped = model(candidates_CI, summary_BSD.flip(0), user_C)
    assert (model(candidates_CI, summary_BSD, user_C) - swapped).abs().max() > 1e-2
