"""The LightGBM baseline on a small generated data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import Examples
from vista.errors import InputError
from vista.evaluate.metrics import auc
from vista.train.lightgbm_baseline import ROUNDS_WITHOUT_VALIDATION, fit_lightgbm

SIZE = GeneratedConfig(users=150, items=200, events_per_user=160, days=10)
TEST_DAY = 9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("lightgbm") / "data"
    prepare_dataset(DataConfig(source="generated", buckets=2, generated=SIZE), path, WindowConfig())
    return Dataset.open(path)


def parts(dataset: Dataset) -> tuple[Examples, Examples, Examples]:
    return dataset.examples(0, 8), dataset.examples(8, TEST_DAY), dataset.examples(TEST_DAY, TEST_DAY + 1)


def labels_of(examples: Examples) -> np.ndarray:
    return examples.candidates.labels_CT[examples.candidate_ids(), 0]


def test_predicts_the_test_candidates_in_their_order(dataset: Dataset) -> None:
    """The planted signal shows in past label rates: well above chance, and lost if the order is not kept."""
    train, valid, test = parts(dataset)
    model = fit_lightgbm(dataset, train, valid, seed=0)
    probability = model.predict(test)
    labels = labels_of(test)
    assert probability.shape == labels.shape
    assert ((probability > 0) & (probability < 1)).all()
    assert auc(labels, probability) > 0.65
    assert auc(np.roll(labels, 7), probability) < 0.6
    first = test.where(np.arange(len(test)) < 10)
    np.testing.assert_array_equal(model.predict(first), probability[: len(labels_of(first))])
    assert set(model.gain) == set(dataset.file.dense)
    assert sum(model.gain.values()) == pytest.approx(1)


def test_names_that_lightgbm_refuses_or_changes_are_ours(tmp_path: Path) -> None:
    rows = [f"{n % 40},{n % 17},{1_767_225_600 + n * 900},{n % 2},{n % 3}" for n in range(576)]
    (tmp_path / "a.csv").write_text("\n".join(["who,what,ts,label,place", *rows]) + "\n")
    (tmp_path / "events.yaml").write_text(
        "user: who\nitem: what\ntime: ts\ntime_unit: s\nlabel: label\n"
        "actions: {'page:view': place == 1, add to cart: place == 2, add_to_cart: place > 1}\n"
        "context: {place: 3}\n"
    )
    config = DataConfig(source="events", path=str(tmp_path), buckets=2)
    prepare_dataset(config, tmp_path / "data", WindowConfig())
    data = Dataset.open(tmp_path / "data")
    model = fit_lightgbm(data, data.examples(0, 5), data.examples(5, 6), seed=0)
    assert set(model.gain) == {*data.file.dense, "place"}
    assert {"user_share_page:view", "user_share_add to cart", "user_share_add_to_cart"} < set(model.gain)


def test_is_deterministic(dataset: Dataset) -> None:
    train, valid, test = parts(dataset)
    first, second = (fit_lightgbm(dataset, train, valid, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.predict(test), second.predict(test))
    assert (first.rounds, first.gain) == (second.rounds, second.gain)


def test_labels_of_the_test_day_are_not_used(dataset: Dataset) -> None:
    train, valid, test = parts(dataset)
    model = fit_lightgbm(dataset, train, valid, seed=0)
    flipped = 1 - test.candidates.labels_CT
    blind = replace(test, candidates=replace(test.candidates, labels_CT=flipped))
    np.testing.assert_array_equal(model.predict(blind), model.predict(test))


def test_without_validation_days_the_number_of_trees_is_fixed(dataset: Dataset) -> None:
    train, _, _ = parts(dataset)
    model = fit_lightgbm(dataset, train, dataset.examples(5, 5), seed=0)
    assert model.rounds == ROUNDS_WITHOUT_VALIDATION


def test_days_without_candidates_are_named(dataset: Dataset) -> None:
    train, valid, _ = parts(dataset)
    none = dataset.examples(5, 5)
    with pytest.raises(InputError, match="training days hold no candidates"):
        fit_lightgbm(dataset, none, valid, seed=0)
    with pytest.raises(InputError, match="test days hold no candidates"):
        fit_lightgbm(dataset, train, valid, seed=0).predict(none)
