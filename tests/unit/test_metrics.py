"""Metrics against scikit-learn, and on inputs for which they do not exist."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from vista.errors import InputError
from vista.evaluate import metrics

LABELS = np.array([0, 1, 1, 0, 1])
SCORES = np.array([0.1, 0.9, 0.4, 0.4, 0.7])
USERS = np.array([7, 7, 9, 9, 9])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, labels and coarse scores: ties within and between users and classes."""
    rows = draw(st.integers(2, 60))
    users = draw(hnp.arrays(np.int64, rows, elements=st.integers(-3, 8)))
    labels = draw(hnp.arrays(np.uint8, rows, elements=st.integers(0, 1)))
    assume(0 < labels.sum() < rows)
    return users, labels, draw(hnp.arrays(np.int64, rows, elements=st.integers(1, 12))) / 13


@given(predictions())
@settings(max_examples=200)
def test_equals_scikit_learn(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, labels, scores = drawn
    rate = labels.mean()
    expected_loss = sklearn_log_loss(labels, scores)
    constant_loss = sklearn_log_loss(labels, np.full(len(labels), rate))
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.log_loss(labels, scores) == pytest.approx(expected_loss, abs=1e-12)
    assert metrics.normalized_entropy(labels, scores) == pytest.approx(expected_loss / constant_loss)


@given(predictions())
@settings(max_examples=200)
def test_gauc_equals_scikit_learn_user_by_user(drawn: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    users, labels, scores = drawn
    own = [users == user for user in np.unique(users)]
    mixed = [mask for mask in own if 0 < labels[mask].sum() < mask.sum()]
    if not mixed:
        assert metrics.measure(users, labels, scores, scores).gauc is None
        with pytest.raises(InputError, match="both labels"):
            metrics.gauc(users, labels, scores)
        return
    expected = np.average(
        [roc_auc_score(labels[mask], scores[mask]) for mask in mixed], weights=[mask.sum() for mask in mixed]
    )
    assert metrics.gauc(users, labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auc_of_a_large_sample_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(50_000) < 0.02
    scores = np.round(rng.random(50_000), 3)
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_normalized_entropy_of_the_mean_label_is_one() -> None:
    assert metrics.normalized_entropy(LABELS, np.full(5, LABELS.mean())) == pytest.approx(1.0, abs=1e-12)


def test_saturated_probabilities_keep_the_log_loss_finite() -> None:
    worst = metrics.log_loss(np.array([0, 1]), np.array([1.0, 0.0]))
    assert worst == pytest.approx(-np.log(metrics.PROBABILITY_FLOOR), rel=1e-6)


def test_calibration_is_predicted_over_observed() -> None:
    assert metrics.calibration(LABELS, SCORES) == pytest.approx(2.5 / 3)


def test_calibration_error_by_hand() -> None:
    labels = np.array([0, 1, 1, 1, 0])
    scores = np.array([0.11, 0.13, 0.92, 1.0, 0.0])
    bins = metrics.calibration_bins(labels, scores)
    assert bins.rows == (1, 2, 1, 1)
    assert bins.predicted == pytest.approx((0.0, 0.12, 0.92, 1.0))
    assert bins.observed == pytest.approx((0.0, 0.5, 1.0, 1.0))
    assert metrics.expected_calibration_error(labels, scores) == pytest.approx((2 * 0.38 + 0.08) / 5)


def test_measure_holds_every_metric() -> None:
    frozen = np.array([0.9, 0.1, 0.3, 0.8, 0.2])
    measured = metrics.measure(USERS, LABELS, SCORES, frozen)
    assert measured.auc == metrics.auc(LABELS, SCORES)
    assert measured.ne == metrics.normalized_entropy(LABELS, SCORES)
    assert measured.log_loss == metrics.log_loss(LABELS, SCORES)
    assert measured.gauc == metrics.gauc(USERS, LABELS, frozen)
    assert measured.gauc != metrics.gauc(USERS, LABELS, SCORES) == pytest.approx((2 * 1 + 3 * 0.75) / 5)
    assert metrics.measure(USERS, LABELS, SCORES).gauc is None
    assert measured.calibration == metrics.calibration(LABELS, SCORES)
    assert measured.ece == metrics.expected_calibration_error(LABELS, SCORES)
    assert measured.rows == 5


def test_by_slice_measures_each_mask_and_says_where_it_cannot() -> None:
    slices = {"nine": USERS == 9, "positives": LABELS == 1, "nobody": np.zeros(5, dtype=bool)}
    scores = metrics.Scores(SCORES, SCORES[::-1])
    measured = metrics.by_slice(slices, USERS, LABELS, scores)
    assert measured == {
        "nine": metrics.measure(USERS[2:], LABELS[2:], SCORES[2:], SCORES[::-1][2:]),
        "positives": None,
        "nobody": None,
    }
    with pytest.raises(InputError, match="slice 'short' is bool of shape"):
        metrics.by_slice({"short": np.ones(4, dtype=bool)}, USERS, LABELS, scores)
    with pytest.raises(InputError, match="slice 'numbers' is int64"):
        metrics.by_slice({"numbers": np.ones(5, dtype=np.int64)}, USERS, LABELS, scores)


@pytest.mark.parametrize(
    ("users", "labels", "scores", "message"),
    [
        ([], [], [], "at least one row"),
        ([1, 2], [0, 0], [0.5, 0.5], "all 2 rows are 0"),
        ([1, 2], [1, 1], [0.5, 0.5], "all 2 rows are 1"),
        ([1, 2, 3], [0, 1, 0], [0.5, np.nan, np.inf], r"2 of 3 rows hold scores that are not finite.*row 1"),
        ([1, 2], [0, 1], [0.5, 1.5], "1 of 2 rows hold scores outside 0 .. 1.*logits.*row 1, 1.5"),
        ([1, 2], [0, 1], [-0.1, 0.5], "scores outside 0 .. 1"),
        ([1, 2], [0, 255], [0.1, 0.5], "labels that are not 0 or 1.*row 1, 255"),
        ([1, 2], [0.0, np.nan], [0.1, 0.5], "labels that are not 0 or 1"),
        ([1, 2], [0, 1, 1], [0.1, 0.5, 0.5], "arrays of one length"),
        ([1, 2, 3], [0, 1], [0.1, 0.5], "arrays of one length"),
    ],
)
def test_what_cannot_be_measured_is_named(users: list, labels: list, scores: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.measure(np.array(users), np.array(labels), np.array(scores))


def test_calibration_without_a_positive_is_named() -> None:
    with pytest.raises(InputError, match="calibration needs a positive label"):
        metrics.calibration(np.zeros(3), np.full(3, 0.5))


def test_metrics_refuse_nan() -> None:
    kept = metrics.measure(USERS, LABELS, SCORES).model_dump()
    with pytest.raises(ValueError, match="finite number"):
        metrics.Metrics(**kept | {"ne": float("nan")})
