"""Paired bootstrap over users: is the difference of two models larger than the luck of the draw?

Users, not rows, are drawn with replacement, since the rows of a user are not independent; every model is
measured on the same resamples. N rows, U users, R resamples, M models, K summed columns.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vista.errors import InputError
from vista.evaluate.metrics import Array, Finite, checked, entropy, measure, row_losses

CONFIDENCE = 0.95
COUNTS_PER_CHUNK = 4_000_000
MAX_DRAWS_PER_RESAMPLE = 20

Floats = NDArray[np.float64]


class Interval(Finite):
    """A figure and its 95% bootstrap interval."""

    point: float
    low: float
    high: float


class PairedDifference(Finite):
    """A model minus the reference on the same rows. AUC: positive is better; NE and log-loss: negative is."""

    reference: str
    auc: Interval
    ne: Interval
    log_loss: Interval


class Resamples:
    """How often each user is drawn in each resample; the same for every caller with the same seed.

    A draw without both labels has no AUC or NE and is drawn again. Raises `InputError` for fewer than two
    users, or if both labels are so rare that `MAX_DRAWS_PER_RESAMPLE` draws per resample do not suffice.
    """

    def __init__(self, users_N: Array, labels_N: Array, resamples: int, seed: int) -> None:
        ids_U, user_N = np.unique(users_N, return_inverse=True)
        if len(ids_U) < 2:
            raise InputError(f"a bootstrap over users needs at least 2 users, there are {len(ids_U)}")
        self.user_N = user_N
        self.users = len(ids_U)
        self.resamples = resamples
        self.seed = seed
        self.rows_U = np.bincount(user_N)
        self.positives_U = np.bincount(user_N, weights=labels_N)

    def chunks(self) -> Iterator[Floats]:
        """Counts [R, U], some resamples at a time."""
        rng = np.random.default_rng(self.seed)
        per_chunk = max(1, COUNTS_PER_CHUNK // self.users)
        for start in range(0, self.resamples, per_chunk):
            yield np.stack([self._draw(rng) for _ in range(min(per_chunk, self.resamples - start))])

    def sums(self, columns_NK: Floats) -> Floats:
        """Sum of every column over the rows of every resample, [R, K]."""
        sums_UK = np.stack([np.bincount(self.user_N, weights=column_N) for column_N in columns_NK.T], axis=1)
        return np.concatenate([counts_RU @ sums_UK for counts_RU in self.chunks()])

    def _draw(self, rng: np.random.Generator) -> Floats:
        for _ in range(MAX_DRAWS_PER_RESAMPLE):
            counts_U = np.bincount(rng.integers(0, self.users, self.users), minlength=self.users)
            positives = counts_U @ self.positives_U
            if 0 < positives < counts_U @ self.rows_U:
                return counts_U.astype(np.float64)
        raise InputError(
            f"{MAX_DRAWS_PER_RESAMPLE} draws of {self.users} users held only one label "
            f"({self.positives_U.sum():.0f} of {self.rows_U.sum()} rows are positive): use more rows"
        )


def paired_bootstrap(
    users_N: Array,
    labels_N: Array,
    scores: Mapping[str, Array],
    reference: str,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Differences of every other model to `reference`, with 95% percentile intervals.

    Raises `InputError` if `reference` has no scores, or as `measure` and `Resamples` do.
    """
    if reference not in scores:
        raise InputError(f"reference {reference!r} is not among the models {sorted(scores)}: score it too")
    measured = {name: measure(users_N, labels_N, scores_N) for name, scores_N in scores.items()}
    resampled = _resampled(Resamples(users_N, labels_N, resamples, seed), labels_N, scores)

    def difference(name: str, metric: str) -> Interval:
        point = getattr(measured[name], metric) - getattr(measured[reference], metric)
        return interval(point, resampled[metric][name] - resampled[metric][reference])

    return {
        name: PairedDifference(
            reference=reference, **{metric: difference(name, metric) for metric in resampled}
        )
        for name in scores
        if name != reference
    }


def interval(point: float, resampled_R: Floats) -> Interval:
    """The percentile interval of `CONFIDENCE` around a figure."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled_R, (tail, 1.0 - tail))
    return Interval(point=point, low=float(low), high=float(high))


def _resampled(
    draws: Resamples, labels_N: Array, scores: Mapping[str, Array]
) -> dict[str, dict[str, Floats]]:
    """Each metric of each model in every resample: metric -> model -> [R]."""
    losses_NM = np.stack([row_losses(labels_N, scores_N) for scores_N in scores.values()], axis=1)
    counted_NK = np.stack([np.ones(len(labels_N)), labels_N.astype(np.float64)], axis=1)
    sums_RK = draws.sums(np.concatenate([counted_NK, losses_NM], axis=1))
    rows_R, positives_R, losses_RM = sums_RK[:, 0], sums_RK[:, 1], sums_RK[:, 2:]
    weighted = [_WeightedAuc(draws.user_N, labels_N, scores_N) for scores_N in scores.values()]
    auc_RM = np.array([[one(counts_U) for one in weighted] for chunk in draws.chunks() for counts_U in chunk])
    log_loss_RM = losses_RM / rows_R[:, None]
    ne_RM = log_loss_RM / entropy(positives_R / rows_R)[:, None]
    by_metric = {"auc": auc_RM, "ne": ne_RM, "log_loss": log_loss_RM}
    return {metric: dict(zip(scores, values_RM.T, strict=True)) for metric, values_RM in by_metric.items()}


class _WeightedAuc:
    """One model's AUC with a weight per user: sorted once, then a cumulative sum per resample.

    A positive wins against the negatives with smaller scores and half of those with its own: the mean of
    the cumulative weights of negatives before and after its score.
    """

    def __init__(self, user_N: NDArray[np.int64], labels_N: Array, scores_N: Array) -> None:
        positive_N, probability_N = checked(labels_N, scores_N)
        negatives = probability_N[~positive_N]
        order = np.argsort(negatives)
        self.negative_user = user_N[~positive_N][order]
        self.positive_user = user_N[positive_N]
        self.before = np.searchsorted(negatives[order], probability_N[positive_N], side="left")
        self.after = np.searchsorted(negatives[order], probability_N[positive_N], side="right")

    def __call__(self, weight_U: Floats) -> float:
        cumulative = np.concatenate([[0.0], np.cumsum(weight_U[self.negative_user])])
        weights = weight_U[self.positive_user]
        wins = weights @ (cumulative[self.before] + cumulative[self.after]) / 2.0
        return float(wins / (weights.sum() * cumulative[-1]))
