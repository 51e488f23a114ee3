"""May a new downstream model replace the champion? Figures in, a decision with its reasons in words out.

NE losses are relative to the champion's NE on the same rows: +0.1% is worse by a thousandth. N rows,
S slices, R resamples.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vista.config import GateConfig
from vista.errors import InputError
from vista.evaluate.bootstrap import CONFIDENCE, Interval, Resamples, interval
from vista.evaluate.metrics import Array, Finite, check_mask, checked, row_losses

MIN_SLICE_USERS = 30
"""A slice of fewer users has no meaningful interval over users, however many rows it has."""

NO_CHAMPION = "there is no champion to compare with"

Masks = Mapping[str, NDArray[np.bool_]]


class SliceLoss(Finite):
    """A slice's relative NE loss; `p_value`, Holm-corrected over the slices, is of "not beyond the limit"."""

    name: str
    rows: int
    ne_loss: Interval
    p_value: float
    worse: bool


class GateDecision(Finite):
    """`promote`, and why. Without a champion's probabilities `ne_loss` is None, `slices` is empty, and
    `not_compared` says why there are none.

    `slices` are those large enough to judge: `min_slice_rows` rows and `MIN_SLICE_USERS` users.
    """

    promote: bool
    reasons: tuple[str, ...]
    ne_loss: Interval | None
    slices: tuple[SliceLoss, ...]
    calibration: Interval
    coverage: dict[str, float]
    canaries_equal: bool
    not_compared: str = ""


def decide(
    config: GateConfig,
    users_N: Array,
    labels_N: Array,
    challenger_N: Array,
    champion_N: Array | None,
    slices: Masks,
    coverage: Mapping[str, float],
    canaries_equal: bool,
    seed: int = 0,
    *,
    not_compared: str = NO_CHAMPION,
) -> GateDecision:
    """Compare the challenger's probabilities with the champion's (None: there are none, and `not_compared`
    says why) on the same rows.

    Without them only delivery can refuse: there is nothing better to keep, or it cannot be judged on these
    rows. The latter is so whenever users, items or features are others: to refuse then would keep every such
    run from serving, so the reasons name the champion instead. An equal model passes, so calibration refuses
    only where it is also worse than the champion's. Raises `InputError` as `measure`
    and `Resamples` do, and for a coverage that is not a share.
    """
    if not coverage or not all(0.0 <= share <= 1.0 for share in coverage.values()):
        raise InputError(f"coverage is {dict(coverage)}: give a share of 0 .. 1 for at least one region")
    checked(labels_N, challenger_N, users_N)
    draws = Resamples(users_N, labels_N, config.resamples, seed)
    calibration = _calibration(draws, labels_N, challenger_N)
    refusals = _delivery_refusals(coverage, canaries_equal)
    ne_loss: Interval | None = None
    judged: tuple[SliceLoss, ...] = ()
    if champion_N is not None:
        ne_loss = _ne_loss(draws, labels_N, challenger_N, champion_N)
        judged = _slice_losses(config, draws, labels_N, challenger_N, champion_N, slices)
        refusals += _ne_refusals(config, ne_loss) + _slice_refusals(config, judged)
        refusals += _calibration_refusals(config, calibration, _calibration(draws, labels_N, champion_N))
    unseen = "" if champion_N is not None else not_compared
    reasons = tuple(refusals) or _why_promoted(config, ne_loss, judged, calibration, unseen)
    if refusals and unseen not in ("", NO_CHAMPION):
        reasons += (unseen,)
    return GateDecision(
        promote=not refusals,
        reasons=reasons,
        ne_loss=ne_loss,
        slices=judged,
        calibration=calibration,
        coverage=dict(coverage),
        canaries_equal=canaries_equal,
        not_compared=unseen,
    )


def _calibration(draws: Resamples, labels_N: Array, scores_N: Array) -> Interval:
    columns_N2 = np.stack([scores_N, labels_N], axis=1).astype(np.float64)
    sums_R2 = draws.sums(columns_N2)
    predicted, observed = columns_N2.sum(axis=0)
    return interval(float(predicted / observed), sums_R2[:, 0] / sums_R2[:, 1])


def _ne_loss(draws: Resamples, labels_N: Array, challenger_N: Array, champion_N: Array) -> Interval:
    """NE / champion's NE - 1. Both divide by the entropy of the same rows, which cancels: a ratio of sums."""
    losses_N2 = np.stack([row_losses(labels_N, challenger_N), row_losses(labels_N, champion_N)], axis=1)
    sums_R2 = draws.sums(losses_N2)
    challenger, champion = losses_N2.sum(axis=0)
    return interval(float(challenger / champion - 1.0), sums_R2[:, 0] / sums_R2[:, 1] - 1.0)


def _slice_losses(
    config: GateConfig,
    draws: Resamples,
    labels_N: Array,
    challenger_N: Array,
    champion_N: Array,
    slices: Masks,
) -> tuple[SliceLoss, ...]:
    masks = {
        name: mask_N for name, mask_N in slices.items() if _large_enough(config, draws.user_N, name, mask_N)
    }
    if not masks:
        return ()
    losses_N2 = np.stack([row_losses(labels_N, challenger_N), row_losses(labels_N, champion_N)], axis=1)
    masked_N2S = losses_N2[:, :, None] * np.stack(list(masks.values()), axis=1)[:, None, :]
    sums_R2S = draws.sums(masked_N2S.reshape(len(labels_N), -1)).reshape(draws.resamples, 2, -1)
    loss_RS = sums_R2S[:, 0] / sums_R2S[:, 1] - 1.0
    sums_2S = masked_N2S.sum(axis=0)
    loss_S = (sums_2S[0] / sums_2S[1] - 1.0).tolist()
    p_values = [
        _p_beyond(config.max_slice_ne_loss, *both) for both in zip(loss_S, loss_RS.std(axis=0), strict=True)
    ]
    corrected = holm(dict(zip(masks, p_values, strict=True)))
    return tuple(
        SliceLoss(
            name=name,
            rows=int(mask_N.sum()),
            ne_loss=interval(loss_S[slot], loss_RS[:, slot]),
            p_value=corrected[name],
            worse=corrected[name] <= (1.0 - CONFIDENCE) / 2.0,
        )
        for slot, (name, mask_N) in enumerate(masks.items())
    )


def _large_enough(
    config: GateConfig, user_N: NDArray[np.int64], name: str, mask_N: NDArray[np.bool_]
) -> bool:
    check_mask(name, mask_N, len(user_N))
    return int(mask_N.sum()) >= config.min_slice_rows and len(np.unique(user_N[mask_N])) >= MIN_SLICE_USERS


def _p_beyond(limit: float, point: float, error: float) -> float:
    """One-sided p-value of "the loss is at most `limit`", normal with the bootstrap's standard error.

    Counting resamples instead could not go below 1 / R, so that with many slices none could ever refuse.
    """
    if error == 0.0:
        return float(point <= limit)
    return NormalDist().cdf((limit - point) / error)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the k-th smallest of m counts m - k + 1 times, never below a smaller one.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for smaller, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - smaller) * p_value))
        corrected[name] = largest
    return corrected


def _delivery_refusals(coverage: Mapping[str, float], canaries_equal: bool) -> list[str]:
    refusals = [
        f"region {region} holds {share:.4%} of the users' summaries, 100% is needed: finish the delivery"
        for region, share in coverage.items()
        if share < 1.0
    ]
    if not canaries_equal:
        refusals.append("a canary read back from a store differs from the table: deliver the epoch again")
    return refusals


def _ne_refusals(config: GateConfig, loss: Interval) -> list[str]:
    refusals = []
    if loss.low > config.max_ne_loss:
        refusals.append(
            f"NE is {_percents(loss)} worse than the champion's: "
            f"the whole interval is beyond {config.max_ne_loss:.2%}"
        )
    if loss.point > config.max_point_ne_loss:
        refusals.append(
            f"NE is {loss.point:.2%} worse than the champion's: "
            f"more than {config.max_point_ne_loss:.2%}, whatever the interval"
        )
    return refusals


def _slice_refusals(config: GateConfig, slices: tuple[SliceLoss, ...]) -> list[str]:
    return [
        f"slice {one.name!r} ({one.rows:,} rows): NE is {_percents(one.ne_loss)} worse than the champion's, "
        f"beyond {config.max_slice_ne_loss:.2%} (p = {one.p_value:.2g}, corrected for {len(slices)} slices)"
        for one in slices
        if one.worse
    ]


def _calibration_refusals(config: GateConfig, new: Interval, old: Interval) -> list[str]:
    off = abs(new.point - 1.0)
    certain = not new.low <= 1.0 <= new.high
    if off <= config.max_calibration_error or not certain or off <= abs(old.point - 1.0):
        return []
    return [
        f"calibration is {new.point:.3f} ({new.low:.3f} .. {new.high:.3f}), off by more than "
        f"{config.max_calibration_error:.1%}, and the champion's is {old.point:.3f}"
    ]


def _why_promoted(
    config: GateConfig,
    loss: Interval | None,
    slices: tuple[SliceLoss, ...],
    calibration: Interval,
    not_compared: str,
) -> tuple[str, ...]:
    if loss is None:
        compared = not_compared
    else:
        compared = (
            f"NE against the champion's: {_percents(loss)}, within the limits; "
            f"none of {len(slices)} slices is worse beyond {config.max_slice_ne_loss:.2%}"
        )
    return (
        compared,
        f"calibration is {calibration.point:.3f} ({calibration.low:.3f} .. {calibration.high:.3f})",
        "every region holds all summaries and its canaries read back equal",
    )


def _percents(loss: Interval) -> str:
    return f"{loss.point:+.2%} ({loss.low:+.2%} .. {loss.high:+.2%})"
