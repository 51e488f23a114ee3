"""Does the newest day look like the days before it? A half-empty day trains a model on holes."""

import logging
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import polars as pl

from vista.config import Frozen
from vista.errors import DataValidationError

log = logging.getLogger(__name__)

MIN_EARLIER_DAYS = 3
"""With fewer earlier days there is no usual day to compare with."""

TRAILING_DAYS = 7

MIN_VOLUME = 0.6
"""Share of the usual number of candidates that the newest day must hold."""

NOISE_SD = 3.0
"""A day of few candidates is off by chance: every limit is widened by so many standard deviations."""

MAX_RATE_SHIFT = 0.5
"""Relative change of the label rate."""

MAX_NEW_ITEMS = 0.5
"""Largest share of candidates whose item was never seen on an earlier day, above the usual share."""

MIN_KNOWN_USERS = 0.5
"""Share of the day's users who came before, relative to the usual share."""


class DayFigures(Frozen):
    """One day's candidates: their number, the share of label 1 (first task), of items that appear that day
    for the first time, and of the day's users who appeared on an earlier day."""

    day: int
    candidates: int
    label_rate: float
    new_items: float
    known_users: float


def day_figures(candidates: pl.DataFrame) -> tuple[DayFigures, ...]:
    """Figures per day of `candidates`: day, user_id, label (0 or 1), item_first_day, user_first_day."""
    per_day = (
        candidates.group_by("day")
        .agg(
            pl.len().alias("candidates"),
            pl.col("label").mean().alias("label_rate"),
            (pl.col("item_first_day") >= pl.col("day")).mean().alias("new_items"),
            (
                pl.col("user_id").filter(pl.col("user_first_day") < pl.col("day")).n_unique()
                / pl.col("user_id").n_unique()
            ).alias("known_users"),
        )
        .sort("day")
    )
    return tuple(DayFigures(**row) for row in per_day.rows(named=True))


def check_newest_day(days: Sequence[DayFigures], first_date: date) -> None:
    """Raise `DataValidationError` if the newest day is far from the median of up to TRAILING_DAYS before it.
    `first_date` is that of day 0.

    The message gives every figure that is off, the usual one and the limit.
    """
    newest, earlier = days[-1], days[-1 - TRAILING_DAYS : -1]
    if len(earlier) < MIN_EARLIER_DAYS:
        log.info("day %d is not validated: only %d earlier days", newest.day, len(earlier))
        return
    usual = {
        name: float(np.median([getattr(day, name) for day in earlier]))
        for name in ("candidates", "label_rate", "new_items", "known_users")
    }
    found = _unusual(newest, usual)
    if found:
        raise DataValidationError(
            f"day {newest.day} ({first_date + timedelta(newest.day)}), the newest, does not look like the "
            f"{len(earlier)} days before it: "
            + "; ".join(found)
            + ". Wait for the rest of the day's events, or leave the day out"
        )


def _unusual(newest: DayFigures, usual: dict[str, float]) -> list[str]:
    found = []
    share_noise = NOISE_SD * 0.5 / newest.candidates**0.5
    if newest.candidates + NOISE_SD * newest.candidates**0.5 < MIN_VOLUME * usual["candidates"]:
        found.append(
            f"{newest.candidates:,} candidates, usually {usual['candidates']:,.0f} "
            f"(at least {MIN_VOLUME:.0%} of that)"
        )
    shift = abs(newest.label_rate - usual["label_rate"])
    if shift > MAX_RATE_SHIFT * usual["label_rate"] + share_noise:
        found.append(
            f"label rate {newest.label_rate:.4f}, usually {usual['label_rate']:.4f} "
            f"(within {MAX_RATE_SHIFT:.0%} of that)"
        )
    if newest.new_items > usual["new_items"] + MAX_NEW_ITEMS + share_noise:
        found.append(
            f"{newest.new_items:.1%} of candidates are new items, usually {usual['new_items']:.1%} "
            f"(at most {MAX_NEW_ITEMS:.0%} more)"
        )
    if newest.known_users + share_noise < MIN_KNOWN_USERS * usual["known_users"]:
        found.append(
            f"{newest.known_users:.1%} known users, usually {usual['known_users']:.1%} "
            f"(at least {MIN_KNOWN_USERS:.0%} of that)"
        )
    return found
