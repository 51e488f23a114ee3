"""The promotion gate: every rule refuses alone, and an equal model always passes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vista.config import GateConfig, RefreshConfig
from vista.errors import InputError
from vista.evaluate.gate import GateDecision, decide, holm
from vista.recipes import recipe_of

CONFIG = GateConfig(resamples=200)
ROWS, USERS = 12_000, 3_000
LIMITS = ("max_ne_loss", "max_point_ne_loss", "max_slice_ne_loss", "max_calibration_error")


@dataclass
class Case:
    """A calibrated champion and a challenger, by default the champion itself."""

    seed: int = 0
    challenger: Any = None
    champion: Any = "good"
    slices: dict[str, np.ndarray] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=lambda: {"east": 1.0, "west": 1.0})
    canaries_equal: bool = True

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.logits = rng.normal(-0.3, 1.2, ROWS)
        self.good = 1 / (1 + np.exp(-self.logits))
        self.users = rng.integers(0, USERS, ROWS)
        self.labels = (rng.random(ROWS) < self.good).astype(np.uint8)
        self.noise = rng.normal(0, 1, ROWS)

    def noisy(self, sd: float) -> np.ndarray:
        """Worse than `good`, by a NE that grows with `sd`, about as well calibrated."""
        return 1 / (1 + np.exp(-(self.logits + sd * self.noise)))

    def decide(self, config: GateConfig = CONFIG) -> GateDecision:
        champion = self.good if isinstance(self.champion, str) else self.champion
        return decide(
            config,
            self.users,
            self.labels,
            self.good if self.challenger is None else self.challenger,
            champion,
            self.slices,
            self.coverage,
            self.canaries_equal,
        )


@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-0.8, 0.8),
    sd=st.floats(0.0, 2.0),
    slices=st.integers(0, 6),
)
@settings(max_examples=20)
def test_an_equal_model_always_passes(seed: int, shift: float, sd: float, slices: int) -> None:
    """However bad and badly calibrated the champion is."""
    case = Case(seed)
    scores = np.clip(case.noisy(sd) + shift, 0.001, 0.999)
    rng = np.random.default_rng(seed)
    case.slices = {f"slice {n}": rng.random(ROWS) < 0.3 for n in range(slices)}
    case.challenger, case.champion = scores, scores.copy()
    decision = case.decide()
    assert decision.promote, decision.reasons
    assert len(decision.slices) == slices


@given(seed=st.integers(0, 10_000), good=st.floats(0.0, 0.9), region=st.sampled_from(["east", "west"]))
@settings(max_examples=15)
def test_incomplete_delivery_is_never_promoted(seed: int, good: float, region: str) -> None:
    for champion in ("good", None):
        case = Case(seed, champion=champion, coverage={"east": 1.0, "west": 1.0} | {region: good})
        decision = case.decide()
        assert not decision.promote
        assert [region in reason for reason in decision.reasons] == [True]


@given(seed=st.integers(0, 10_000), less=st.floats(0.0, 1.0), more=st.floats(0.0, 1.0))
@settings(max_examples=15)
def test_a_model_with_more_noise_is_not_promoted_where_one_with_less_is_refused(
    seed: int, less: float, more: float
) -> None:
    less, more = sorted((less, more))
    case = Case(seed)
    config = CONFIG.model_copy(update={"max_calibration_error": 1.0})  # calibration is not monotone in sd
    case.challenger = case.noisy(less)
    first = case.decide(config)
    case.challenger = case.noisy(more)
    second = case.decide(config)
    if first.ne_loss.point <= second.ne_loss.point and first.ne_loss.low <= second.ne_loss.low:
        assert first.promote >= second.promote


def test_a_better_model_passes_and_the_reasons_hold_the_figures() -> None:
    case = Case()
    case.champion, case.slices = case.noisy(0.5), {"first half": np.arange(ROWS) < ROWS // 2}
    decision = case.decide()
    assert decision.promote
    assert decision.ne_loss.high < 0
    assert f"{decision.ne_loss.point:+.2%}" in decision.reasons[0]
    assert "none of 1 slices" in decision.reasons[0]


def test_no_champion_promotes_even_a_badly_calibrated_model() -> None:
    case = Case(champion=None, challenger=np.full(ROWS, 0.9), slices={"all": np.ones(ROWS, dtype=bool)})
    decision = case.decide()
    assert decision.promote
    assert decision.reasons[0] == "there is no champion to compare with"
    assert (decision.ne_loss, decision.slices) == (None, ())


def test_a_champion_that_could_not_be_compared_is_named() -> None:
    """It refuses nothing: it would keep every run in another space from serving."""
    case = Case(champion=None)
    why = "the champion r-1 could not be compared: its model cannot be read"
    asked = (case.users, case.labels, case.good, None, {})
    decision = decide(CONFIG, *asked, case.coverage, canaries_equal=True, not_compared=why)
    assert decision.promote
    assert (decision.reasons[0], decision.not_compared) == (why, why)
    refused = decide(CONFIG, *asked, {"east": 0.5}, canaries_equal=True, not_compared=why)
    assert not refused.promote
    assert refused.reasons[0].startswith("region east holds")
    assert refused.reasons[1:] == (why,)


def test_an_interval_wholly_beyond_the_limit_refuses() -> None:
    case = Case()
    case.challenger = case.noisy(0.2)
    decision = case.decide()
    assert decision.ne_loss.low > 0.001
    assert decision.ne_loss.point < 0.02
    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "the whole interval is beyond 0.10%" in decision.reasons[0]


def test_a_loss_that_the_interval_cannot_tell_from_the_limit_passes() -> None:
    case = Case()
    case.challenger = case.noisy(0.05)
    decision = case.decide()
    assert decision.ne_loss.low <= 0.001 < decision.ne_loss.high
    assert decision.promote


def test_a_large_point_loss_refuses_whatever_the_interval() -> None:
    """Four rows of loss on four users: the interval reaches below the limit, the point does not."""
    case = Case()
    case.challenger = case.good.copy()
    wrong = np.flatnonzero((case.labels == 1) & (case.good > 0.5))[:14]
    case.challenger[wrong] = 1e-7
    config = CONFIG.model_copy(update={"max_ne_loss": 0.03})
    decision = case.decide(config)
    assert decision.ne_loss.point > 0.02
    assert decision.ne_loss.low < 0.03
    assert [("whatever the interval" in reason) for reason in decision.reasons] == [True]


def test_a_worse_slice_refuses_and_is_named() -> None:
    case = Case()
    bad = np.arange(ROWS) < 1_500
    case.challenger = np.where(bad, case.noisy(1.0), case.good)
    case.slices = {"bad": bad, "good": ~bad, "few rows": np.arange(ROWS) < 999}
    config = CONFIG.model_copy(update={"max_ne_loss": 1.0, "max_point_ne_loss": 1.0})
    decision = case.decide(config)
    assert not decision.promote
    assert ["slice 'bad' (1,500 rows)" in reason for reason in decision.reasons] == [True]
    assert {one.name: one.worse for one in decision.slices} == {"bad": True, "good": False}


def test_a_slice_of_few_users_is_not_judged() -> None:
    case = Case()
    case.users[:2_000] = np.arange(2_000) % 29
    case.users[2_000:] += 100
    mask = np.arange(ROWS) < 2_000
    case.challenger = np.where(mask, case.noisy(1.0), case.good)
    case.slices = {"few users": mask}
    config = CONFIG.model_copy(update={"max_ne_loss": 1.0, "max_point_ne_loss": 1.0})
    assert case.decide(config).slices == ()


def test_many_slices_of_noise_do_not_refuse() -> None:
    """24 slices a little worse by chance: uncorrected, one of them would be beyond the limit by .025 each."""
    config = CONFIG.model_copy(update={"max_slice_ne_loss": 0.0, "max_ne_loss": 1.0})
    refused_uncorrected, promoted = 0, 0
    for seed in range(12):
        case = Case(seed)
        rng = np.random.default_rng(seed)
        tilt = rng.normal(0, 0.15, USERS)[case.users]
        case.labels = (rng.random(ROWS) < 1 / (1 + np.exp(-case.logits))).astype(np.uint8)
        case.challenger = 1 / (1 + np.exp(-(case.logits + tilt)))
        case.champion = 1 / (1 + np.exp(-(case.logits - tilt)))  # as good, so that every loss is chance
        part = rng.integers(0, 10, USERS)[case.users]
        case.slices = {f"part {n}": part == n for n in range(10)}
        decision = case.decide(config)
        assert len(decision.slices) == 10
        refused_uncorrected += any(one.ne_loss.low > 0 for one in decision.slices)
        promoted += decision.promote
    assert refused_uncorrected >= 1
    assert promoted >= 11


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5}
    )
    assert holm({}) == {}


def test_calibration_refuses_only_if_certain_and_worse_than_the_champions() -> None:
    loose = CONFIG.model_copy(update={"max_ne_loss": 1.0, "max_point_ne_loss": 1.0})
    case = Case()
    off = np.clip(case.good * 1.1, 0, 1)
    case.challenger = off
    refused = case.decide(loose)
    assert not refused.promote
    assert "off by more than 2.0%" in refused.reasons[0]
    case.champion = np.clip(case.good * 1.2, 0, 1)
    assert case.decide(loose).promote
    few = slice(0, 400)  # so few rows that 1 is inside the interval
    exact = case.good[few] * case.labels[few].sum() / case.good[few].sum()
    uncertain = decide(
        loose, case.users[few], case.labels[few], exact * 1.03, exact, {}, {"east": 1.0}, canaries_equal=True
    )
    assert uncertain.calibration.point > 1.02
    assert uncertain.calibration.low <= 1 <= uncertain.calibration.high
    assert uncertain.promote


def test_a_differing_canary_refuses() -> None:
    decision = Case(canaries_equal=False, champion=None).decide()
    assert not decision.promote
    assert "canary" in decision.reasons[0]


def test_every_refusal_is_listed() -> None:
    case = Case(canaries_equal=False, coverage={"east": 0.9999, "west": 1.0})
    case.challenger = np.clip(case.noisy(1.5) * 1.3, 0, 1)
    case.slices = {"all": np.ones(ROWS, dtype=bool)}
    words = (
        "east holds 99.9900%",
        "canary",
        "whole interval",
        "whatever the interval",
        "slice 'all'",
        "calibration",
    )
    reasons = case.decide().reasons
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_the_decision_is_repeatable_and_survives_json() -> None:
    case = Case()
    case.challenger, case.slices = case.noisy(0.3), {"all": np.ones(ROWS, dtype=bool)}
    decision = case.decide()
    assert decision == case.decide()
    assert GateDecision.model_validate_json(decision.model_dump_json()) == decision


def test_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(InputError, match="at least one region"):
        Case(coverage={}).decide()
    with pytest.raises(InputError, match=r"share of 0 \.\. 1"):
        Case(coverage={"east": float("nan")}).decide()
    with pytest.raises(InputError, match="not finite"):
        Case(challenger=np.full(ROWS, np.nan)).decide()
    with pytest.raises(InputError, match="arrays of one length"):
        Case(champion=np.full(ROWS - 1, 0.5)).decide()
    with pytest.raises(InputError, match="slice 'bad'"):
        Case(slices={"bad": np.ones(3, dtype=bool)}).decide()


@pytest.mark.parametrize("name", [*LIMITS, "min_slice_rows"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_a_limit_that_would_refuse_all_or_nothing_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        GateConfig.model_validate({name: value})


@pytest.mark.parametrize("recipe", ["events", "industrial"])
def test_own_events_have_the_gate_of_production(recipe: str) -> None:
    """A model that is worse by 1% of NE, the interval not wholly beyond the limit: enough on small data."""
    case = Case(seed=3)
    case.challenger = case.noisy(0.16)
    small = case.decide(CONFIG.model_copy(update={"max_ne_loss": 0.02}))
    assert small.ne_loss is not None
    assert 0.003 < small.ne_loss.point < 0.02
    assert small.promote, small.reasons
    production = recipe_of(RefreshConfig(recipe=recipe)).gate.model_copy(update={"max_ne_loss": 0.02})
    (reason,) = case.decide(production).reasons
    assert "more than 0.30%, whatever the interval" in reason
