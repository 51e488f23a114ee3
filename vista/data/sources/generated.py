"""Generated events with a planted long-range signal. Nothing is read; everything follows from the seed.

Every item belongs to one of 2^TRAITS clusters (its category): a combination of TRAITS traits that it has or
has not. A user cares for one trait, wants it or wants it absent, and shows it in the OLD half of the history
only: there, every other event is of a wanted cluster and is watched LONG; the others are watched SHORT, and
are more often of unwanted clusters than of wanted ones (AVOIDED). All events of the newer half are of any
cluster and watched SHORT. A candidate's label is 1 with probability CLICK_IF_WANTED or CLICK_IF_NOT.

How often clusters occur tells a part of what the user wants, and a mean of embeddings can hold that; which of
them were watched long tells it all, and needs both together.

What keeps it honest:
- candidates come in pairs, one wanted and one not, so that all users have one base rate; users are dealt
  evenly over what can be wanted, so that clusters have one too: neither ids nor counts help;
- candidates are not events (`candidate_only`): their outcomes, which would repeat the signal in the newest
  part of the history, are nowhere in it. The label comes from another system, as conversions of
  advertisements do; so label rates of the past, as dense features, are blind here.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vista.config import DataConfig, GeneratedConfig
from vista.data.rejects import Rejects
from vista.data.schema import DAY_US, NO_LABEL
from vista.data.sources import SourceInfo

TRAITS = 3
CLUSTERS = 2**TRAITS
WANTED = CLUSTERS // 2
AVOIDED = 0.35
CLICK_IF_WANTED = 0.9
CLICK_IF_NOT = 0.1
PAIRS_PER_DAY = 4
MINUTE_US = 60_000_000
BLOCK_EVENTS = 1_000_000
START_US = 19_000 * DAY_US
"""Day 0: 2022-01-08 UTC."""
OLD_DAYS = 60
"""Three quarters of a history lie before day 0 and span so many days."""
SHORT_S, LONG_S = 5.0, 60.0
TASTES = tuple(f"{want} trait {trait + 1}" for trait in range(TRAITS) for want in ("without", "with"))
"""What a user can want, in the order in which it goes round by user id."""


def describe(config: DataConfig) -> SourceInfo:
    return SourceInfo(actions=("view",), context=(), tasks=("label",))


def oracle_auc(label: pl.Series, true_probability: pl.Series) -> float:
    """AUC of the true probabilities: what no model can beat, but by luck. Ties count half.

    >>> oracle_auc(pl.Series([0, 1, 0, 1]), pl.Series([0.1, 0.1, 0.2, 0.9]))
    0.625
    """
    positive = label == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    ranks = float(true_probability.rank("average").filter(positive).sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def taste_of(user_id_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """[U] which of `TASTES` each user has: what no model is told, and a good summary has found out."""
    return user_id_U % len(TASTES)


def read(config: DataConfig, rejects: Rejects) -> Iterator[pa.RecordBatch]:
    """All users' rows, some users at a time, with `true_probability` on candidates."""
    for user_U, number in _blocks(config.generated):
        rows = _block(config.generated, user_U, number)
        rejects.rows += rows.height
        yield from rows.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()


def _blocks(config: GeneratedConfig) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Users that are made together, and how many events each of them has. Long users are the last ones."""
    users_per_block = max(1, BLOCK_EVENTS // config.events_per_user)
    for first in range(0, config.users, users_per_block):
        yield np.arange(first, min(first + users_per_block, config.users)), config.events_per_user
    for user, number in enumerate(config.long_users, start=config.users):
        yield np.array([user]), number


def _block(config: GeneratedConfig, user_U: NDArray[np.int64], number: int) -> pl.DataFrame:
    """Rows of some users with `number` events each, each user's in time order."""
    random = np.random.default_rng([config.seed, 0, int(user_U[0])])
    cluster_UG = _clusters(user_U)
    return (
        pl.concat(
            [
                _past(config, user_U, cluster_UG, number, random),
                _candidates(config, user_U, cluster_UG, random),
            ]
        )
        .sort("user_id", "event_time_us", maintain_order=True)
        .with_columns(
            pl.lit(-1, pl.Int64).alias("seq"),
            (pl.col("item_id") % CLUSTERS).alias("category_id"),
            pl.lit(None, pl.Int32).alias("surface"),
        )
    )


def _clusters(user_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """[U, CLUSTERS] each user's clusters, the wanted half first. What is wanted goes round by user id."""
    cluster_G = np.arange(CLUSTERS)
    unwanted = [
        (cluster_G >> trait & 1) != present for trait in range(TRAITS) for present in (0, 1)
    ]  # by taste
    order: NDArray[np.int64] = np.stack([np.argsort(one, kind="stable") for one in unwanted])
    cluster_UG: NDArray[np.int64] = order[taste_of(user_U)]
    return cluster_UG


def _items(
    cluster: NDArray[np.int64], config: GeneratedConfig, random: np.random.Generator
) -> NDArray[np.int64]:
    """A random item of each cluster; an item's cluster is its id modulo CLUSTERS."""
    item: NDArray[np.int64] = cluster + CLUSTERS * random.integers(0, config.items // CLUSTERS, cluster.shape)
    return item


def _past(
    config: GeneratedConfig,
    user_U: NDArray[np.int64],
    cluster_UG: NDArray[np.int64],
    number: int,
    random: np.random.Generator,
) -> pl.DataFrame:
    """History only: likes and views of the old half, views of the newer one, half of which is before day
    0."""
    before = number - number // 4
    place_N = np.arange(number)
    old_N = place_N < number // 2
    long_N = old_N & (place_N % 2 == 0)
    pick_UN = random.integers(0, CLUSTERS, (len(user_U), number))
    avoided_UN = random.random(pick_UN.shape) < np.where(old_N, AVOIDED, 0.0)
    pick_UN = np.where(avoided_UN, pick_UN % WANTED + WANTED, pick_UN)
    pick_UN[:, long_N] %= WANTED
    item_UN = _items(np.take_along_axis(cluster_UG, pick_UN, axis=1), config, random)
    time_us_N = START_US + np.append(
        np.linspace(-OLD_DAYS * DAY_US, 0, before, endpoint=False, dtype=np.int64),
        np.linspace(0, config.days * DAY_US, number - before, endpoint=False, dtype=np.int64),
    )
    delay_us_U = random.integers(0, MINUTE_US, len(user_U))  # even gaps: when a user comes says nothing
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, number),
            "item_id": item_UN.ravel(),
            "event_time_us": (time_us_N + delay_us_U[:, None]).ravel(),
            "action_mask": np.ones(item_UN.size, np.uint32),
            "value": np.tile(np.where(long_N, LONG_S, SHORT_S).astype(np.float32), len(user_U)),
            "label_label": np.full(item_UN.size, NO_LABEL, np.uint8),
            "candidate_only": np.zeros(item_UN.size, bool),
            "true_probability": np.full(item_UN.size, np.nan, np.float32),
        }
    )


def _candidates(
    config: GeneratedConfig,
    user_U: NDArray[np.int64],
    cluster_UG: NDArray[np.int64],
    random: np.random.Generator,
) -> pl.DataFrame:
    """Candidates: pairs of an interesting and another one, in random order, one session a day."""
    size = (len(user_U), config.days, 2 * PAIRS_PER_DAY)
    wanted_UDP = random.permuted(np.broadcast_to(np.arange(size[2]) % 2 == 0, size).copy(), axis=2)
    pick_UDP = np.where(wanted_UDP, random.integers(0, WANTED, size), random.integers(WANTED, CLUSTERS, size))
    cluster_UN = np.take_along_axis(cluster_UG, pick_UDP.reshape(len(user_U), -1), axis=1)
    probability_N = np.where(wanted_UDP.ravel(), CLICK_IF_WANTED, CLICK_IF_NOT)
    clicked_N = random.random(probability_N.shape) < probability_N
    start_UD = random.integers(0, DAY_US - size[2] * MINUTE_US, size[:2]) + DAY_US * np.arange(config.days)
    time_UDP = START_US + start_UD[:, :, None] + MINUTE_US * np.arange(size[2])
    return pl.DataFrame(
        {
            "user_id": np.repeat(user_U, cluster_UN.shape[1]),
            "item_id": _items(cluster_UN, config, random).ravel(),
            "event_time_us": time_UDP.ravel(),
            "action_mask": np.zeros(cluster_UN.size, np.uint32),
            "value": np.full(cluster_UN.size, np.nan, np.float32),
            "label_label": clicked_N.astype(np.uint8),
            "candidate_only": np.ones(cluster_UN.size, bool),
            "true_probability": probability_N.astype(np.float32),
        }
    )
