"""The metrics of binary predictions, one implementation for training, gate and report.

Arguments are 1-d arrays of N impressions: `users_N` ids, `labels_N` 0 or 1, `scores_N` probabilities. An
input for which a metric does not exist raises `InputError`; no metric is ever NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from vista.config import Frozen
from vista.errors import InputError

PROBABILITY_FLOOR = 1e-7
"""Probabilities are clipped to [floor, 1 - floor] in the log-loss: float32 sigmoids saturate at 1."""

CALIBRATION_BINS = 20

Array = NDArray[Any]


class Finite(Frozen):
    """A value without NaN or infinities."""

    model_config = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's probabilities of N rows: with each row's own history, and with every history frozen at the
    test boundary."""

    own_N: NDArray[np.float32]
    frozen_N: NDArray[np.float32]

    def take(self, chosen_M: NDArray[np.int64]) -> "Scores":
        """Of the chosen rows."""
        return Scores(self.own_N[chosen_M], self.frozen_N[chosen_M])


class Metrics(Finite):
    """One model on one set of rows. `gauc` is of frozen histories; None without them, or if no user has both
    labels."""

    auc: float
    ne: float
    log_loss: float
    gauc: float | None
    calibration: float
    ece: float
    rows: int


def measure(users_N: Array, labels_N: Array, scores_N: Array, frozen_N: Array | None = None) -> Metrics:
    """All metrics; GAUC of `frozen_N`. Raises `InputError` for empty, non-finite or one-class input."""
    positive_N, probability_N = checked(labels_N, scores_N, users_N)
    return Metrics(
        auc=auc(positive_N, probability_N),
        ne=normalized_entropy(positive_N, probability_N),
        log_loss=log_loss(positive_N, probability_N),
        gauc=_gauc_if_any(users_N, positive_N, frozen_N),
        calibration=calibration(positive_N, probability_N),
        ece=expected_calibration_error(positive_N, probability_N),
        rows=len(positive_N),
    )


def by_slice(
    slices: Mapping[str, NDArray[np.bool_]], users_N: Array, labels_N: Array, scores: Scores
) -> dict[str, Metrics | None]:
    """Metrics of the rows that each mask selects; None where a slice does not hold both labels."""
    positive_N, _ = checked(labels_N, scores.own_N, users_N)
    measured: dict[str, Metrics | None] = {}
    for name, mask_N in slices.items():
        check_mask(name, mask_N, len(positive_N))
        both = np.unique(positive_N[mask_N]).size == 2
        rows = np.flatnonzero(mask_N)
        sliced = scores.take(rows)
        measured[name] = (
            measure(users_N[rows], positive_N[rows], sliced.own_N, sliced.frozen_N) if both else None
        )
    return measured


def auc(labels_N: Array, scores_N: Array) -> float:
    """Probability that a positive scores above a negative, ties counting one half.

    >>> auc(np.array([0, 1, 1, 0]), np.array([.1, .9, .4, .4]))
    0.875
    """
    positive_N, probability_N = _both_classes(labels_N, scores_N)
    _, group_N, size_G = np.unique(probability_N, return_inverse=True, return_counts=True)
    positives_G = np.bincount(group_N[positive_N], minlength=len(size_G))
    negatives_G = size_G - positives_G
    negatives_below_G = np.cumsum(negatives_G) - negatives_G
    wins = float(np.sum(positives_G * (negatives_below_G + 0.5 * negatives_G)))
    return wins / float(positives_G.sum()) / float(negatives_G.sum())


def row_losses(labels_N: Array, scores_N: Array) -> NDArray[np.float64]:
    """Cross-entropy of each row, in nats, probabilities clipped at `PROBABILITY_FLOOR`."""
    positive_N, probability_N = checked(labels_N, scores_N)
    clipped_N = np.clip(probability_N, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    losses_N: NDArray[np.float64] = -np.log(np.where(positive_N, clipped_N, 1.0 - clipped_N))
    return losses_N


def log_loss(labels_N: Array, scores_N: Array) -> float:
    """Mean cross-entropy, in nats."""
    return float(row_losses(labels_N, scores_N).mean())


def entropy(rate: Array | float) -> NDArray[np.float64]:
    """Entropy of a coin with this probability, in nats; 0 at 0 and 1.

    >>> round(float(entropy(0.5)), 6)
    0.693147
    """
    inside = np.clip(np.asarray(rate, dtype=np.float64), 1e-300, 1.0)
    outside = np.clip(1.0 - np.asarray(rate, dtype=np.float64), 1e-300, 1.0)
    nats: NDArray[np.float64] = -(inside * np.log(inside) + outside * np.log(outside))
    return nats


def normalized_entropy(labels_N: Array, scores_N: Array) -> float:
    """Log-loss divided by the entropy of these rows' mean label; below 1 is better than the mean."""
    positive_N, probability_N = _both_classes(labels_N, scores_N)
    return log_loss(positive_N, probability_N) / float(entropy(positive_N.mean()))


def gauc(users_N: Array, labels_N: Array, scores_N: Array) -> float:
    """Mean of the users' own AUCs, weighted by impressions, over the users with both labels.

    It shows ranking within a user only if every user's history is frozen at the test boundary: a history
    that holds the user's earlier test rows is penalised. Raises `InputError` if no user has both labels.
    """
    positive_N, probability_N = checked(labels_N, scores_N, users_N)
    mixed_N = _mixed_users(users_N, positive_N)
    if not mixed_N.any():
        raise InputError(
            f"GAUC needs a user with both labels; the {len(positive_N)} rows hold none: use more rows"
        )
    _, user_N = np.unique(users_N[mixed_N], return_inverse=True)
    auc_U, rows_U = _auc_by_user(user_N, positive_N[mixed_N], probability_N[mixed_N])
    return float(np.average(auc_U, weights=rows_U))


def _gauc_if_any(users_N: Array, positive_N: NDArray[np.bool_], frozen_N: Array | None) -> float | None:
    if frozen_N is None or not _mixed_users(users_N, positive_N).any():
        return None
    return gauc(users_N, positive_N, frozen_N)


def calibration(labels_N: Array, scores_N: Array) -> float:
    """Predicted positives / observed positives; 1 is perfect, above 1 promises too much."""
    positive_N, probability_N = checked(labels_N, scores_N)
    if not positive_N.any():
        raise InputError(
            f"calibration needs a positive label; all {len(positive_N)} rows are 0: use more rows"
        )
    return float(probability_N.sum() / positive_N.sum())


class CalibrationBins(Finite):
    """Predicted against observed rates in equal-width bins of the prediction; empty bins are left out."""

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    rows: tuple[int, ...]


def calibration_bins(labels_N: Array, scores_N: Array) -> CalibrationBins:
    """The reliability diagram of `CALIBRATION_BINS` equal-width bins."""
    positive_N, probability_N = checked(labels_N, scores_N)
    bin_N = np.minimum((probability_N * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    rows_K = np.bincount(bin_N, minlength=CALIBRATION_BINS)
    full_K = rows_K > 0
    predicted_K = np.bincount(bin_N, weights=probability_N, minlength=CALIBRATION_BINS)[full_K]
    observed_K = np.bincount(bin_N, weights=positive_N, minlength=CALIBRATION_BINS)[full_K]
    return CalibrationBins(
        predicted=tuple((predicted_K / rows_K[full_K]).tolist()),
        observed=tuple((observed_K / rows_K[full_K]).tolist()),
        rows=tuple(rows_K[full_K].tolist()),
    )


def expected_calibration_error(labels_N: Array, scores_N: Array) -> float:
    """Mean distance of predicted and observed rate over the bins, weighted by rows."""
    bins = calibration_bins(labels_N, scores_N)
    distances_K = np.abs(np.array(bins.predicted) - np.array(bins.observed))
    return float(np.average(distances_K, weights=bins.rows))


def checked(
    labels_N: Array, scores_N: Array, users_N: Array | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as booleans and scores as float64. Raises `InputError` naming what cannot be measured."""
    shapes = {"labels": labels_N.shape, "scores": scores_N.shape}
    if users_N is not None:
        shapes["users"] = users_N.shape
    if labels_N.ndim != 1 or len(set(shapes.values())) != 1:
        raise InputError(f"metrics need 1-d arrays of one length; shapes are {shapes}")
    if not len(labels_N):
        raise InputError("metrics need at least one row, there is none: is the test window empty?")
    _refuse(~np.isin(labels_N, (0, 1)), labels_N, "labels that are not 0 or 1: map them in the source's task")
    _refuse(~np.isfinite(scores_N), scores_N, "scores that are not finite: the training diverged")
    _refuse(
        (scores_N < 0) | (scores_N > 1), scores_N, "scores outside 0 .. 1: pass probabilities, not logits"
    )
    return labels_N.astype(np.bool_), scores_N.astype(np.float64)


def check_mask(name: str, mask_N: Array, rows: int) -> None:
    """Raises `InputError` unless the mask is one boolean per row."""
    if mask_N.dtype != np.bool_ or mask_N.shape != (rows,):
        raise InputError(
            f"slice {name!r} is {mask_N.dtype} of shape {mask_N.shape}: give one boolean per row ({rows})"
        )


def _refuse(bad_N: Array, values_N: Array, what: str) -> None:
    if bad_N.any():
        first = int(np.argmax(bad_N))
        raise InputError(
            f"{int(bad_N.sum())} of {len(bad_N)} rows hold {what} (the first: row {first}, {values_N[first]})"
        )


def _both_classes(labels_N: Array, scores_N: Array) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    positive_N, probability_N = checked(labels_N, scores_N)
    if positive_N.all() or not positive_N.any():
        raise InputError(
            f"AUC and NE need both labels; all {len(positive_N)} rows are {int(positive_N[0])}: "
            "use more rows or another task"
        )
    return positive_N, probability_N


def _mixed_users(users_N: Array, positive_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of users with both labels."""
    _, user_N, rows_U = np.unique(users_N, return_inverse=True, return_counts=True)
    positives_U = np.bincount(user_N[positive_N], minlength=len(rows_U))
    mixed_N: NDArray[np.bool_] = ((positives_U > 0) & (positives_U < rows_U))[user_N]
    return mixed_N


def _auc_by_user(
    user_N: NDArray[np.int64], positive_N: NDArray[np.bool_], probability_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """AUC and rows of each user, all with both labels, from one sort by (user, score).

    Groups G are runs of equal (user, score); a positive beats the negatives of its user below its group
    and half of those within it.
    """
    order_N = np.lexsort((probability_N, user_N))
    user_N, positive_N, probability_N = user_N[order_N], positive_N[order_N], probability_N[order_N]
    new_group_N = np.ones(len(user_N), dtype=np.bool_)
    new_group_N[1:] = (user_N[1:] != user_N[:-1]) | (probability_N[1:] != probability_N[:-1])
    group_N = np.cumsum(new_group_N) - 1
    user_G = user_N[new_group_N]
    positives_G = np.bincount(group_N, weights=positive_N)
    negatives_G = np.bincount(group_N, weights=~positive_N)
    positives_U = np.bincount(user_G, weights=positives_G)
    negatives_U = np.bincount(user_G, weights=negatives_G)
    negatives_of_users_before_U = np.cumsum(negatives_U) - negatives_U
    negatives_below_G = np.cumsum(negatives_G) - negatives_G - negatives_of_users_before_U[user_G]
    wins_U = np.bincount(user_G, weights=positives_G * (negatives_below_G + 0.5 * negatives_G))
    return wins_U / (positives_U * negatives_U), np.bincount(user_N)
