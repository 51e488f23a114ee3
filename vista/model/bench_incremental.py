"""What an update per event costs: `python -m vista.model.bench_incremental [--out FILE]` prints JSON.

Random events, a random model of width 64 with 4 heads and 128 seeds, one thread. Every figure stands beside
what it spares or must equal: the summary computed anew from the whole history.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from vista.config import ModelConfig
from vista.data.schema import Batch, FeatureSpec
from vista.model.incremental import Incremental
from vista.model.inputs import tensors
from vista.model.ranker import Ranker

MODEL = ModelConfig(width=64, mlp=(64,), positions=False, use_user_id=False, use_dense_features=False)
SPEC = FeatureSpec(
    num_items=10_000, num_users=1, num_categories=100, num_value_buckets=17, actions=("click", "like"),
    context=(), dense=(), tasks=("click",),
)  # fmt: skip
REPEATS = 5


def events_of(lengths: Sequence[int]) -> Batch:
    """Random events of users with so many each, without candidates."""
    draw, rows, users = np.random.default_rng(0), sum(lengths), len(lengths)
    none, zeros_B = np.zeros(0, np.int64), np.zeros(users, np.int64)
    return Batch(
        user_id_B=np.arange(users),
        user_row_B=zeros_B,
        cut_us_B=zeros_B,
        seq_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        uih_item_L=draw.integers(0, SPEC.num_items, rows),
        uih_category_L=draw.integers(0, SPEC.num_categories, rows),
        uih_action_L=draw.integers(0, 4, rows),
        uih_value_L=draw.integers(0, SPEC.num_value_buckets, rows),
        uih_time_us_L=np.arange(rows),
        num_candidates=zeros_B,
        candidate_item_C=none,
        candidate_category_C=none,
        candidate_context_CK=np.zeros((0, 0), np.int64),
        candidate_dense_CF=np.zeros((0, 0), np.float32),
        candidate_id_C=none,
        labels_CT=np.zeros((0, 1), np.float32),
    )


def ms(function: Callable[[], object]) -> float:
    """The least of some calls, after one that is not counted."""
    function()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return round(1e3 * min(times), 3)


def one_event(following: Incremental, users: int) -> dict[str, Any]:
    """One event more for each of some users, and their summaries."""
    event, first = events_of([1] * users), np.zeros(users, np.int64)
    state = following.update(following.empty(users), event, first)
    return {
        "users": users,
        "update_ms": ms(lambda: following.update(state, event, first + 1)),
        "summary_ms": ms(lambda: following.summary(state)),
    }


def whole_history(following: Incremental, events: int) -> dict[str, Any]:
    """The state of one user with a long history, the summary computed anew, and how far apart they are."""
    batch = events_of([events])
    started = time.perf_counter()
    state = following.update(following.empty(1), batch, np.arange(events))
    made = time.perf_counter()
    state_peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024
    with torch.inference_mode():
        anew_BSD = following.model.summarise(tensors(batch, "cpu"))
    return {
        "events": events,
        "state_s": round(made - started, 3),
        "state_peak_rss_mb": state_peak_mb,
        "summary_anew_s": round(time.perf_counter() - made, 3),
        "largest_difference": (following.summary(state) - anew_BSD).abs().max().item(),
    }


@click.command()
@click.option(
    "--events", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="of the long history"
)
@click.option("--out", type=click.Path(path_type=Path), help="also write the JSON to this file")
def main(events: int, out: Path | None) -> None:
    """Measure updates per event beside summaries computed anew."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    following = Incremental(Ranker(MODEL, SPEC, "vista"), events + 1)
    report = {
        "load_1m": os.getloadavg()[0],
        "one_event": [one_event(following, users) for users in (1, 100, 1_000)],
        "whole_history": whole_history(following, events),
    }
    text = json.dumps(report, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
