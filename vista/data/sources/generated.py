"""Generated events with a planted long-range signal. Nothing is read; everything follows from the seed.

Every item belongs to one cluster (its category). A user is interested in half of the clusters, chosen at
random, and shows it in the OLD half of the history only: there, an item of an interesting cluster is liked
with probability LIKE_IF_INTERESTED, another one with LIKE_IF_NOT. In the newer half items and likes are
drawn without regard to interests. A candidate's label is 1 with probability CLICK_IF_INTERESTED or
CLICK_IF_NOT.

What keeps it honest:
- candidates come in pairs, one of an interesting cluster and one of another, so that all users have one base
  rate; interests are drawn uniformly, so that items have one too: neither ids nor counts help;
- an impression is an event of later histories, as everywhere, but its outcome is not among the actions: the
  label comes from another system, as conversions of advertisements do. Without that the newest events would
  repeat the signal of the oldest. (Label rates of the past, as dense features, do see it.)
- how often a cluster occurs in a history says nothing, old or new: only which of its items were liked does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from vista.config import DataConfig, GeneratedConfig
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US
from vista.data.sources import SourceInfo

CLUSTERS = 32
LIKE_IF_INTERESTED = 0.95
LIKE_IF_NOT = 0.05
CLICK_IF_INTERESTED = 0.9
CLICK_IF_NOT = 0.1
PAIRS_PER_DAY = 2
BLOCK_EVENTS = 1_000_000
START_US = 19_000 * DAY_US
"""Day 0: 2022-01-08 UTC."""
OLD_DAYS = 60
"""The part of a history before day 0 spans so many days."""
SHOWN, VIEW, LIKE = 1, 2, 4


def describe(config: DataConfig) -> SourceInfo:
    return SourceInfo(actions=("shown", "view", "like"), context=(), tasks=("label",))


def oracle_auc(label: pl.Series, true_probability: pl.Series) -> float:
    """AUC of the true probabilities: what no model can beat, but by luck."""
    return float(roc_auc_score(label.to_numpy(), true_probability.to_numpy()))


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """All users' rows, some users at a time, with `true_probability` on candidates."""
    generated = config.generated
    users_per_block = max(1, BLOCK_EVENTS // generated.events_per_user)
    for first in range(0, generated.users, users_per_block):
        users = np.arange(first, min(first + users_per_block, generated.users))
        rows = _block(generated, users)
        rejects.rows += rows.height
        yield from rows.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()


@dataclass(frozen=True, slots=True)
class _Shape:
    """Numbers per user: old events, other events before day 0, other events on the days, candidates."""

    old: int
    before: int
    after: int
    pairs_per_day: int
    days: int

    @property
    def candidates(self) -> int:
        return 2 * self.pairs_per_day * self.days


def _shape(config: GeneratedConfig) -> _Shape:
    """Half of the history is old; impressions take at most a quarter."""
    pairs = max(1, min(PAIRS_PER_DAY, config.events_per_user // (8 * config.days)))
    rest = max(0, config.events_per_user - config.events_per_user // 2 - 2 * pairs * config.days)
    return _Shape(config.events_per_user // 2, rest - rest // 2, rest // 2, pairs, config.days)


def _block(config: GeneratedConfig, user_U: NDArray[np.int64]) -> pl.DataFrame:
    """Rows of some users: their order is time order within each part."""
    random = np.random.default_rng([config.seed, int(user_U[0])])
    shape = _shape(config)
    cluster_I = np.arange(config.items) % CLUSTERS
    interested_UG = random.permuted(np.tile(np.arange(CLUSTERS) % 2 == 0, (len(user_U), 1)), axis=1)
    past = _past(config, shape, user_U, interested_UG, cluster_I, random)
    shown = _candidates(config, shape, user_U, interested_UG, random)
    return (
        pl.concat([past, shown])
        .sort("user_id", "event_time_us", maintain_order=True)
        .with_columns(
            pl.lit(-1, pl.Int64).alias("seq"),
            (pl.col("item_id") % CLUSTERS).alias("category_id"),
            pl.lit(None, pl.Float32).alias("value"),
            pl.lit(None, pl.Int32).alias("surface"),
        )
    )


def _past(
    config: GeneratedConfig,
    shape: _Shape,
    user_U: NDArray[np.int64],
    interested_UG: NDArray[np.bool_],
    cluster_I: NDArray[np.int64],
    random: np.random.Generator,
) -> pl.DataFrame:
    number = shape.old + shape.before + shape.after
    item_UN = random.integers(0, config.items, (len(user_U), number))
    interested_UN = np.take_along_axis(interested_UG, cluster_I[item_UN], axis=1)
    like_UN = np.where(interested_UN, LIKE_IF_INTERESTED, LIKE_IF_NOT)
    like_UN[:, shape.old :] = 0.5
    liked_UN = random.random((len(user_U), number)) < like_UN
    before = shape.old + shape.before
    early_UN = np.sort(random.integers(0, OLD_DAYS * DAY_US, (len(user_U), before)), axis=1)
    late_UN = np.sort(random.integers(0, shape.days * DAY_US, (len(user_U), shape.after)), axis=1)
    time_UN = START_US + np.concatenate([early_UN - OLD_DAYS * DAY_US, late_UN], axis=1)
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, number),
            "item_id": item_UN.ravel(),
            "event_time_us": time_UN.ravel(),
            "action_mask": np.where(liked_UN.ravel(), VIEW | LIKE, VIEW).astype(np.uint32),
            "label_label": np.full(item_UN.size, 255, np.uint8),
            "true_probability": np.full(item_UN.size, np.nan, np.float32),
        }
    )


def _candidates(
    config: GeneratedConfig,
    shape: _Shape,
    user_U: NDArray[np.int64],
    interested_UG: NDArray[np.bool_],
    random: np.random.Generator,
) -> pl.DataFrame:
    """Pairs of an interesting and another candidate, in random order, in one session a day."""
    users, days, number = len(user_U), shape.days, 2 * shape.pairs_per_day
    wanted_UDP = random.permuted(
        np.broadcast_to(np.arange(number) % 2 == 0, (users, days, number)).copy(), axis=2
    )
    # the clusters of a user, interesting ones first: half of them each
    cluster_UG = np.argsort(~interested_UG, axis=1, kind="stable")
    half = CLUSTERS // 2
    pick_UDP = random.integers(0, half, (users, days, number)) + np.where(wanted_UDP, 0, half)
    cluster_UDP = np.take_along_axis(cluster_UG, pick_UDP.reshape(users, -1), axis=1).reshape(pick_UDP.shape)
    item_UDP = cluster_UDP + CLUSTERS * random.integers(0, config.items // CLUSTERS, cluster_UDP.shape)
    probability_UDP = np.where(wanted_UDP, CLICK_IF_INTERESTED, CLICK_IF_NOT)
    clicked_UDP = random.random(probability_UDP.shape) < probability_UDP
    start_UD = random.integers(0, DAY_US - number * 60_000_000, (users, days))
    time_UDP = (
        START_US
        + DAY_US * np.arange(days)[None, :, None]
        + start_UD[:, :, None]
        + 60_000_000 * np.arange(number)
    )
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, days * number),
            "item_id": item_UDP.ravel(),
            "event_time_us": time_UDP.ravel(),
            "action_mask": np.full(item_UDP.size, SHOWN, np.uint32),
            "label_label": clicked_UDP.ravel().astype(np.uint8),
            "true_probability": probability_UDP.ravel().astype(np.float32),
        }
    )
