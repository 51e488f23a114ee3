"""Gradient-boosted trees on the point-in-time features: what a practitioner tries first.

N candidates, F dense features, K context columns.
"""

import logging

import lightgbm
import numpy as np
from numpy.typing import NDArray

from vista.config import Frozen
from vista.data.dataset import Dataset
from vista.data.schema import Examples
from vista.errors import InputError

log = logging.getLogger(__name__)

MAX_ROUNDS = 2_000
PATIENCE_ROUNDS = 50
ROUNDS_WITHOUT_VALIDATION = 200
PARAMETERS = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class LightgbmFit(Frozen):
    """What a fit used: its trees and every feature's share of the total gain, the largest first."""

    rounds: int
    gain: dict[str, float]


def fit_lightgbm(
    dataset: Dataset, train: Examples, valid: Examples, test: Examples, seed: int, threads: int = 1
) -> tuple[NDArray[np.float64], LightgbmFit]:
    """Fit the first task on `train` and predict `test`: probabilities in the order of `test.candidate_ids()`.

    The number of trees is the best on `valid`; without validation candidates it is fixed. Every feature is
    of the past of its candidate's cut: the dense ones (they hold the history's length) and the context
    columns, as categories. Raises `InputError` if `train` or `test` holds no candidate.
    """
    for name, part in (("training", train), ("test", test)):
        if not len(part):
            raise InputError(f"the {name} days hold no candidates for lightgbm: give more days of events")
    parameters = PARAMETERS | {"seed": seed, "num_threads": threads}
    rows = _rows(dataset, train)
    if len(valid):
        booster = lightgbm.train(
            parameters,
            rows,
            num_boost_round=MAX_ROUNDS,
            valid_sets=[_rows(dataset, valid, reference=rows)],
            callbacks=[lightgbm.early_stopping(PATIENCE_ROUNDS, verbose=False)],
        )
    else:
        booster = lightgbm.train(parameters, rows, num_boost_round=ROUNDS_WITHOUT_VALIDATION)
    fit = LightgbmFit(rounds=booster.best_iteration or booster.current_iteration(), gain=_gain(booster))
    log.info("lightgbm: %d rows, %d trees", rows.num_data(), fit.rounds)
    predicted = booster.predict(_features(test), num_iteration=fit.rounds)
    return np.asarray(predicted, dtype=np.float64), fit


def _features(examples: Examples) -> NDArray[np.float64]:
    """[N, F + K]; a row per candidate."""
    candidates, chosen_N = examples.candidates, examples.candidate_ids()
    return np.concatenate(
        [candidates.dense_CF[chosen_N], candidates.context_CK[chosen_N]], axis=1, dtype=float
    )


def _rows(
    dataset: Dataset, examples: Examples, reference: lightgbm.Dataset | None = None
) -> lightgbm.Dataset:
    context = [column.name for column in dataset.file.context]
    return lightgbm.Dataset(
        _features(examples),
        label=examples.candidates.labels_CT[examples.candidate_ids(), 0],
        feature_name=[*dataset.file.dense, *context],
        categorical_feature=context,
        reference=reference,
    )


def _gain(booster: lightgbm.Booster) -> dict[str, float]:
    gain_F = booster.feature_importance("gain")
    total = max(float(gain_F.sum()), np.finfo(np.float64).tiny)  # 0 if no split helped
    shares = zip(booster.feature_name(), (gain_F / total).tolist(), strict=True)
    return dict(sorted(shares, key=lambda share: -share[1]))
