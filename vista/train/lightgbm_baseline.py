"""Gradient-boosted trees on the point-in-time features: what a practitioner tries first.

N candidates, F dense features, K context columns.
"""

import logging
from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class Lightgbm:
    """Fitted trees: `rounds` of them are used; `gain` is every feature's share of the total gain, the largest
    first."""

    booster: lightgbm.Booster
    rounds: int
    gain: dict[str, float]

    def predict(self, examples: Examples) -> NDArray[np.float64]:
        """Probabilities of the first task in the order of `examples.candidate_ids()`.

        Raises `InputError` without candidates.
        """
        if not len(examples):
            raise InputError("the test days hold no candidates for lightgbm: give more days of events")
        predicted = self.booster.predict(_features(examples), num_iteration=self.rounds)
        return np.asarray(predicted, dtype=np.float64)


def fit_lightgbm(dataset: Dataset, train: Examples, valid: Examples, seed: int, threads: int = 1) -> Lightgbm:
    """Fit the first task on `train`.

    The number of trees is the best on `valid`; without validation candidates it is fixed. Every feature is
    of the past of its candidate's cut: the dense ones (they hold the history's length) and the context
    columns, as categories. Raises `InputError` if `train` holds no candidate.
    """
    if not len(train):
        raise InputError("the training days hold no candidates for lightgbm: give more days of events")
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
    gain = _gain(booster, _names(dataset))
    model = Lightgbm(booster, booster.best_iteration or booster.current_iteration(), gain)
    log.info("lightgbm: %d rows, %d trees", rows.num_data(), model.rounds)
    return model


def _features(examples: Examples) -> NDArray[np.float64]:
    """[N, F + K]; a row per candidate."""
    candidates, chosen_N = examples.candidates, examples.candidate_ids()
    return np.concatenate(
        [candidates.dense_CF[chosen_N], candidates.context_CK[chosen_N]], axis=1, dtype=float
    )


def _names(dataset: Dataset) -> list[str]:
    """[F + K]"""
    return [*dataset.file.dense, *(column.name for column in dataset.file.context)]


def _rows(
    dataset: Dataset, examples: Examples, reference: lightgbm.Dataset | None = None
) -> lightgbm.Dataset:
    """Features have numbers here: LightGBM refuses some names, such as page:view, and changes others."""
    return lightgbm.Dataset(
        _features(examples),
        label=examples.candidates.labels_CT[examples.candidate_ids(), 0],
        feature_name=[f"f{place}" for place in range(len(_names(dataset)))],
        categorical_feature=list(range(len(dataset.file.dense), len(_names(dataset)))),
        reference=reference,
    )


def _gain(booster: lightgbm.Booster, names: list[str]) -> dict[str, float]:
    gain_F = booster.feature_importance("gain")
    total = max(float(gain_F.sum()), np.finfo(np.float64).tiny)  # 0 if no split helped
    shares = zip(names, (gain_F / total).tolist(), strict=True)
    return dict(sorted(shares, key=lambda share: -share[1]))
