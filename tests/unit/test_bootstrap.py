"""The bootstrap against a plain loop, its statistics against the textbook, and its speed."""

import time

import numpy as np
import pytest

from vista.errors import InputError
from vista.evaluate.bootstrap import Resamples, paired_bootstrap
from vista.evaluate.metrics import auc, log_loss, normalized_entropy


def data(users: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, labels, and the true probabilities rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    of_user = rng.beta(2, 2, users)
    user = rng.integers(0, users, rows)
    probability = np.clip(of_user[user] + rng.normal(0, 0.1, rows), 0.02, 0.98).round(2)
    return user * 3 + 100, (rng.random(rows) < probability).astype(np.uint8), probability


def test_equals_a_plain_loop_that_repeats_the_drawn_users_rows() -> None:
    users, labels, good = data(users=12, rows=90)
    scores = {"flat": np.full(90, 0.4), "good": good, "odd": 1 - good}
    resamples = 25
    found = paired_bootstrap(users, labels, scores, "flat", resamples=resamples, seed=3)
    differences = {name: {"auc": [], "ne": [], "log_loss": []} for name in ("good", "odd")}
    metrics = {"auc": auc, "ne": normalized_entropy, "log_loss": log_loss}
    for counts in np.concatenate(list(Resamples(users, labels, resamples, seed=3).chunks())):
        weight = dict(zip(np.unique(users), counts, strict=True))
        row = np.repeat(np.arange(90), [int(weight[user]) for user in users])
        for name, by_metric in differences.items():
            for metric, values in by_metric.items():
                of = metrics[metric]
                values.append(of(labels[row], scores[name][row]) - of(labels[row], scores["flat"][row]))
    assert set(found) == {"good", "odd"}
    for name, by_metric in differences.items():
        for metric, values in by_metric.items():
            one = getattr(found[name], metric)
            of = metrics[metric]
            assert one.point == pytest.approx(of(labels, scores[name]) - of(labels, scores["flat"]))
            assert (one.low, one.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))


def test_every_resample_draws_as_many_users_as_there_are_and_depends_on_the_seed_alone() -> None:
    users, labels, _ = data(users=40, rows=200)
    first = np.concatenate(list(Resamples(users, labels, 30, seed=1).chunks()))
    assert first.shape == (30, 40)
    assert (first.sum(axis=1) == 40).all()
    np.testing.assert_array_equal(first, np.concatenate(list(Resamples(users, labels, 30, seed=1).chunks())))
    assert (first != np.concatenate(list(Resamples(users, labels, 30, seed=2).chunks()))).any()


def test_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    users, labels, _ = data(users=40, rows=200)
    whole = list(Resamples(users, labels, 30, seed=1).chunks())
    monkeypatch.setattr("vista.evaluate.bootstrap.COUNTS_PER_CHUNK", 7 * 40)
    parts = list(Resamples(users, labels, 30, seed=1).chunks())
    assert (len(whole), len(parts)) == (1, 5)
    np.testing.assert_array_equal(whole[0], np.concatenate(parts))


def test_equal_models_differ_by_nothing() -> None:
    users, labels, good = data(users=30, rows=300)
    found = paired_bootstrap(users, labels, {"a": good, "b": good.copy()}, "a", resamples=100)["b"]
    assert (found.auc.low, found.auc.point, found.auc.high) == (0, 0, 0)
    assert max(abs(found.ne.low), abs(found.ne.high)) < 1e-12  # two columns of one matrix product


def test_the_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    """200 data sets of 60 users; a binomial count of 200 at .95 has sd 3.1: outside 177 .. 200 is 4 sd."""
    rng = np.random.default_rng(5)
    covered = 0
    noise = [rng.normal(0, 1, 60) for _ in range(200)]
    for effect in noise:
        users = np.repeat(np.arange(60), 6)
        probability = 1 / (1 + np.exp(-effect[users]))
        labels = rng.random(360) < probability
        if labels.all() or not labels.any():
            continue
        scores = {"flat": np.full(360, 0.5), "other": np.full(360, 0.6)}
        found = paired_bootstrap(users, labels, scores, "flat", resamples=200, seed=1)["other"].log_loss
        truth = -(0.5 * np.log(0.6) + 0.5 * np.log(0.4)) + np.log(0.5)  # the mean label is .5 by symmetry
        covered += found.low <= truth <= found.high
    assert 177 <= covered <= 200


def test_rows_of_one_user_are_not_independent() -> None:
    """Each row ten times under its user's id must not narrow the interval."""
    users, labels, good = data(users=80, rows=80)
    scores = {"flat": np.full(80, 0.5), "good": good}
    once = paired_bootstrap(users, labels, scores, "flat", resamples=300)["good"].ne
    tenfold = paired_bootstrap(
        np.repeat(users, 10),
        np.repeat(labels, 10),
        {name: np.repeat(values, 10) for name, values in scores.items()},
        "flat",
        resamples=300,
    )["good"].ne
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low)


def test_rare_labels_are_drawn_again_until_both_are_there() -> None:
    users = np.arange(20)
    labels = np.zeros(20, dtype=np.uint8)
    labels[0] = 1  # absent from (1 - 1/20)^20 = 36% of the draws
    counts = np.concatenate(list(Resamples(users, labels, 200, seed=0).chunks()))
    assert (counts[:, 0] > 0).all()


def test_refuses_what_it_cannot_resample() -> None:
    users, labels, good = data(users=5, rows=50)
    with pytest.raises(InputError, match="reference 'c' is not among the models"):
        paired_bootstrap(users, labels, {"a": good}, "c")
    with pytest.raises(InputError, match="at least 2 users, there are 1"):
        paired_bootstrap(np.ones(50), labels, {"a": good, "b": good}, "a")
    with pytest.raises(InputError, match="held only one label"):
        list(Resamples(users, np.ones(50), 10, seed=0).chunks())


def test_six_models_30k_rows_1000_resamples_take_seconds() -> None:
    """The limit is 20 s on one idle core; other work may share it, so processor time is measured."""
    users, labels, good = data(users=12_000, rows=30_000)
    rng = np.random.default_rng(0)
    scores = {f"m{n}": np.clip(good + rng.normal(0, 0.05, 30_000), 0.01, 0.99) for n in range(6)}
    started = time.process_time()
    paired_bootstrap(users, labels, scores, "m0", resamples=1_000)
    assert time.process_time() - started < 20
