"""Generated events with a planted long-range signal. Nothing is read; everything follows from the seed.

Every item belongs to one of CLUSTERS clusters (its category). A user is interested in INTERESTS of them and
shows it in the OLD half of the history only: there, every other event is a like of an item of an interest,
all interests equally often. All other events are views of any item. A candidate's label is 1 with
probability CLICK_IF_INTERESTED or CLICK_IF_NOT.

What keeps it honest:
- candidates come in pairs, one of an interest and one of another cluster, so that all users have one base
  rate; interests are dealt like cards, so that clusters have one too: neither ids nor counts help;
- an impression is an event of later histories, as everywhere, but its outcome is not among the actions: the
  label comes from another system, as conversions of advertisements do. Without that the newest events would
  repeat the signal of the oldest. (Label rates of the past, as dense features, do see it.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig, GeneratedConfig
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US
from vista.data.sources import SourceInfo

CLUSTERS = 64
INTERESTS = 8
CLICK_IF_INTERESTED = 0.9
CLICK_IF_NOT = 0.1
PAIRS_PER_DAY = 2
MINUTE_US = 60_000_000
BLOCK_EVENTS = 1_000_000
START_US = 19_000 * DAY_US
"""Day 0: 2022-01-08 UTC."""
OLD_DAYS = 60
"""The part of a history before day 0 spans so many days."""
SHOWN, VIEW, LIKE = 1, 2, 4


def describe(config: DataConfig) -> SourceInfo:
    return SourceInfo(actions=("shown", "view", "like"), context=(), tasks=("label",))


def oracle_auc(label: pl.Series, true_probability: pl.Series) -> float:
    """AUC of the true probabilities: what no model can beat, but by luck. Ties count half.

    >>> oracle_auc(pl.Series([0, 1, 0, 1]), pl.Series([0.1, 0.1, 0.2, 0.9]))
    0.625
    """
    positive = label == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    ranks = float(true_probability.rank("average").filter(positive).sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


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
    """Rows of some users, each user's in time order."""
    random = np.random.default_rng([config.seed, 0, int(user_U[0])])
    cluster_UG = _clusters(config.seed, user_U)
    return (
        pl.concat([_past(config, user_U, cluster_UG, random), _shown(config, user_U, cluster_UG, random)])
        .sort("user_id", "event_time_us", maintain_order=True)
        .with_columns(
            pl.lit(-1, pl.Int64).alias("seq"),
            (pl.col("item_id") % CLUSTERS).alias("category_id"),
            pl.lit(None, pl.Float32).alias("value"),
            pl.lit(None, pl.Int32).alias("surface"),
        )
    )


def _clusters(seed: int, user_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """[U, CLUSTERS] each user's clusters, the interests first.

    A shuffled deck of all clusters is dealt to CLUSTERS / INTERESTS users: every cluster is one's interest.
    """
    hands = CLUSTERS // INTERESTS
    decks = {
        deck: np.random.default_rng([seed, 1, deck]).permutation(CLUSTERS)
        for deck in np.unique(user_U // hands).tolist()
    }
    return np.stack([np.roll(decks[user // hands], -INTERESTS * (user % hands)) for user in user_U.tolist()])


def _items(
    cluster: NDArray[np.int64], config: GeneratedConfig, random: np.random.Generator
) -> NDArray[np.int64]:
    """A random item of each cluster; an item's cluster is its id modulo CLUSTERS."""
    return cluster + CLUSTERS * random.integers(0, config.items // CLUSTERS, cluster.shape)


def _past(
    config: GeneratedConfig,
    user_U: NDArray[np.int64],
    cluster_UG: NDArray[np.int64],
    random: np.random.Generator,
) -> pl.DataFrame:
    """History only: likes and views of the old half, views of the newer one."""
    shape = _shape(config)
    number = shape.old + shape.before + shape.after
    place_N = np.arange(number)
    like_N = (place_N % 2 == 0) & (place_N < shape.old)
    pick_UN = random.integers(0, CLUSTERS, (len(user_U), number))
    pick_UN[:, like_N] = (place_N[like_N] // 2) % INTERESTS
    item_UN = _items(np.take_along_axis(cluster_UG, pick_UN, axis=1), config, random)
    early_UN = random.integers(-OLD_DAYS * DAY_US, 0, (len(user_U), shape.old + shape.before))
    late_UN = random.integers(0, shape.days * DAY_US, (len(user_U), shape.after))
    time_UN = START_US + np.concatenate([np.sort(early_UN, axis=1), np.sort(late_UN, axis=1)], axis=1)
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, number),
            "item_id": item_UN.ravel(),
            "event_time_us": time_UN.ravel(),
            "action_mask": np.tile(np.where(like_N, VIEW | LIKE, VIEW).astype(np.uint32), len(user_U)),
            "label_label": np.full(item_UN.size, 255, np.uint8),
            "true_probability": np.full(item_UN.size, np.nan, np.float32),
        }
    )


def _shown(
    config: GeneratedConfig,
    user_U: NDArray[np.int64],
    cluster_UG: NDArray[np.int64],
    random: np.random.Generator,
) -> pl.DataFrame:
    """Candidates: pairs of an interesting and another one, in random order, one session a day."""
    shape = _shape(config)
    size = (len(user_U), shape.days, 2 * shape.pairs_per_day)
    wanted_UDP = random.permuted(np.broadcast_to(np.arange(size[2]) % 2 == 0, size).copy(), axis=2)
    pick_UDP = np.where(
        wanted_UDP, random.integers(0, INTERESTS, size), random.integers(INTERESTS, CLUSTERS, size)
    )
    cluster_UN = np.take_along_axis(cluster_UG, pick_UDP.reshape(len(user_U), -1), axis=1)
    probability_N = np.where(wanted_UDP.ravel(), CLICK_IF_INTERESTED, CLICK_IF_NOT)
    clicked_N = random.random(probability_N.shape) < probability_N
    start_UD = random.integers(0, DAY_US - size[2] * MINUTE_US, size[:2]) + DAY_US * np.arange(shape.days)
    time_UDP = START_US + start_UD[:, :, None] + MINUTE_US * np.arange(size[2])
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, cluster_UN.shape[1]),
            "item_id": _items(cluster_UN, config, random).ravel(),
            "event_time_us": time_UDP.ravel(),
            "action_mask": np.full(cluster_UN.size, SHOWN, np.uint32),
            "label_label": clicked_N.astype(np.uint8),
            "true_probability": probability_N.astype(np.float32),
        }
    )
