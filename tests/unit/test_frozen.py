"""Features and histories at own cuts and frozen at a boundary: what serving and a plain loop give."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from vista.config import DataConfig, GeneratedConfig, HistoryCut, WindowConfig
from vista.data.dataset import Dataset
from vista.data.features import serving_batch
from vista.data.frozen import frozen
from vista.data.prepare import prepare_dataset
from vista.data.schema import Examples

FIRST_S = 1_767_225_600


@pytest.fixture(scope="module", params=["event", "session", "day"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A shop whose users come at few times, so that cuts, days and equal times meet often; a third of the
    events are history only, also at midnight."""
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    rows = [
        f"{random.integers(0, 20)},{random.integers(0, 12)},{FIRST_S + hour * 3_600},{random.integers(0, 2)},"
        f"{random.integers(0, 3)}"
        for hour in random.integers(0, 6 * 24, 900)
    ]
    (folder / "shop.csv").write_text("\n".join(["who,what,ts,bought,shown", *rows]) + "\n")
    (folder / "events.yaml").write_text(
        "user: who\nitem: what\ntime: ts\ntime_unit: s\nlabel: bought\ncandidates: shown > 0\n"
    )
    mode: HistoryCut = request.param
    config = DataConfig(source="events", path=str(folder), buckets=3, history_cut=mode)
    prepare_dataset(config, folder / "data", WindowConfig())
    return Dataset.open(folder / "data")


def own_times(dataset: Dataset, user: int) -> np.ndarray:
    return dataset.events.event_time_us_N[dataset.events.user_id_N == user]


def served(dataset: Dataset, examples: Examples, example: int) -> np.ndarray:
    """The features that serving computes at the example's cut, of events strictly before it in time."""
    start = examples.candidate_start_E[example]
    rows = examples.candidates.item_row_C[start : start + examples.num_candidates_E[example]]
    user, cut_us = int(examples.user_id_E[example]), int(examples.cut_us_E[example])
    ids = dataset.items.id_R[rows - 1].tolist()
    return serving_batch(dataset, user, ids, cut_us, recent_tail=0).candidate_dense_CF


def test_without_freezing_features_are_those_of_the_own_cut(dataset: Dataset) -> None:
    """Of events whose users had no other at the time of the cut, since serving knows times only."""
    examples = dataset.examples(0, dataset.split().n + 1)
    compared = 0
    for place, user in enumerate(examples.user_id_E.tolist()):
        if (own_times(dataset, user) == examples.cut_us_E[place]).sum() <= 1:
            ids = examples.candidate_start_E[place] + np.arange(examples.num_candidates_E[place])
            assert_array_equal(examples.candidates.dense_CF[ids], served(dataset, examples, place))
            compared += 1
    assert compared > len(examples) / 2


def test_at_the_start_of_a_day_everybody_has_that_cut(dataset: Dataset) -> None:
    last = dataset.split().n
    boundary_us = dataset.day_start_us(last)
    examples = dataset.examples(last, last + 1)
    found = frozen(dataset, examples, boundary_us)
    assert set(found.cut_us_E.tolist()) == {boundary_us}
    for place, user in enumerate(found.user_id_E.tolist()):
        assert found.history_length_E[place] == (own_times(dataset, user) < boundary_us).sum()
        ids = found.candidate_start_E[place] + np.arange(found.num_candidates_E[place])
        assert_array_equal(found.candidates.dense_CF[ids], served(dataset, found, place))
        assert (found.candidates.history_length_C[ids] == found.history_length_E[place]).all()
    assert_array_equal(found.candidate_ids(), examples.candidate_ids())
    assert found.candidates.labels_CT is examples.candidates.labels_CT


def test_a_boundary_after_a_users_first_cut_does_not_show_the_cut_its_future(dataset: Dataset) -> None:
    """As for a split by dates that are not the days of the events: the first cut of the user counts."""
    last = dataset.split().n
    late_us = dataset.day_start_us(last + 1)
    examples = dataset.examples(last, last + 1)
    found, own = frozen(dataset, examples, late_us), frozen(dataset, examples)
    for user in np.unique(examples.user_id_E):
        mine = examples.user_id_E == user
        assert set(found.cut_us_E[mine]) == {examples.cut_us_E[mine].min()}
        assert set(found.history_length_E[mine]) == {examples.history_length_E[mine].min()}
    assert_array_equal(found.candidates.dense_CF, own.candidates.dense_CF)


def test_by_user_the_first_example_stays_and_the_others_get_its_history(dataset: Dataset) -> None:
    """The last fifth of each user's examples, as splits by user are."""
    every = dataset.examples(0, dataset.split().n + 1)
    _, user_E, number_U = np.unique(every.user_id_E, return_inverse=True, return_counts=True)
    place_E = np.arange(len(every)) - np.searchsorted(user_E, user_E)
    test = every.where(place_E >= number_U[user_E] * 4 // 5)
    found = frozen(dataset, test)
    assert (test.history_length_E > found.history_length_E).any()
    for user in np.unique(test.user_id_E):
        first, *_ = mine = np.flatnonzero(test.user_id_E == user)
        assert set(found.cut_us_E[mine]) == {test.cut_us_E[first]}
        assert set(found.history_length_E[mine]) == {test.history_length_E[first]}
        ids = test.candidate_start_E[first] + np.arange(test.num_candidates_E[first])
        assert_array_equal(found.candidates.dense_CF[ids], test.candidates.dense_CF[ids])
        for one in mine:
            assert_array_equal(
                found.events.item_row_N[found.history_start_E[one] :][: found.history_length_E[one]],
                test.events.item_row_N[test.history_start_E[first] :][: test.history_length_E[first]],
            )


def test_candidates_of_other_days_stay_as_they_are(dataset: Dataset) -> None:
    last = dataset.split().n
    found = frozen(dataset, dataset.examples(last, last + 1), dataset.day_start_us(last))
    before_C = dataset.candidates.day_C < last
    assert_array_equal(found.candidates.dense_CF[before_C], dataset.candidates.dense_CF[before_C])
    assert dataset.candidates.dense_CF is not found.candidates.dense_CF


def test_without_examples_there_is_nothing_to_freeze(dataset: Dataset) -> None:
    assert len(frozen(dataset, dataset.examples(100, 101), 0)) == 0


def test_ids_that_are_candidates_only_have_an_empty_past(tmp_path: Path) -> None:
    """Generated candidates are not events: freezing must not count them."""
    size = GeneratedConfig(users=20, items=64, events_per_user=20, days=5)
    prepare_dataset(DataConfig(source="generated", generated=size), tmp_path / "data", WindowConfig())
    data = Dataset.open(tmp_path / "data")
    last = data.split().n
    found = frozen(data, data.examples(last, last + 1), data.day_start_us(last))
    for place in range(len(found)):
        ids = found.candidate_start_E[place] + np.arange(found.num_candidates_E[place])
        assert_array_equal(found.candidates.dense_CF[ids], served(data, found, place))
