"""Slices against a plain loop over a small generated data set."""

from pathlib import Path

import numpy as np
import pytest

from vista.config import DataConfig, GeneratedConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import DAY_US
from vista.errors import InputError
from vista.evaluate.slices import ACTIVITY_DAYS, Groups, activity, candidate_slices, item_age

SIZE = GeneratedConfig(users=40, items=400, events_per_user=60, days=10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path: Path = tmp_path_factory.mktemp("slices") / "data"
    prepare_dataset(DataConfig(source="generated", buckets=3, generated=SIZE), path, WindowConfig())
    return Dataset.open(path)


def test_groups_are_named_by_their_edges() -> None:
    groups = Groups.cut(np.array([0, 1, 9, 10, 11, 500]), (1, 10, 11))
    assert groups.names == ("0", "1 .. 9", "10", "11 and more")
    assert groups.labels() == ("0", "1 .. 9", "1 .. 9", "10", "11 and more", "11 and more")


def test_activity_counts_the_events_of_the_days_before(dataset: Dataset) -> None:
    until_us = dataset.day_start_us(9)
    users = np.append(dataset.users.id_R, -5)  # the last one is unknown
    events = dataset.events
    number = []
    for user in users:
        time_us = events.event_time_us_N[events.user_id_N == user]
        number.append(((time_us >= until_us - ACTIVITY_DAYS * DAY_US) & (time_us < until_us)).sum())
    found = activity(dataset, users, until_us)
    assert found.labels() == Groups.cut(np.array(number), (1, 5, 20, 100)).labels()
    assert len(set(found.labels())) > 1


def test_item_age_is_the_time_since_anyone_first_met_the_item(dataset: Dataset) -> None:
    chosen = dataset.examples(9, 10).candidate_ids()
    events, candidates = dataset.events, dataset.candidates
    days = []
    for candidate in chosen:
        item_row = candidates.item_row_C[candidate]
        met_us = events.event_time_us_N[events.item_row_N == item_row]
        shown_us = candidates.event_time_us_C[candidates.item_row_C == item_row]
        first_us = min([*met_us, *shown_us])
        days.append((candidates.event_time_us_C[candidate] - first_us) // DAY_US)
    assert item_age(dataset, chosen).labels() == Groups.cut(np.array(days), (1, 7, 30)).labels()


def test_the_slices_of_each_slicing_hold_every_candidate_once(dataset: Dataset) -> None:
    chosen = dataset.examples(8, 10).candidate_ids()
    slices = candidate_slices(dataset, chosen)
    slicings: dict[str, list[np.ndarray]] = {}
    for name, mask in slices.items():
        assert mask.any()
        assert not mask.all()
        slicings.setdefault(name.split(":")[0], []).append(mask)
    assert slicings
    for masks in slicings.values():
        assert len(masks) > 1
        np.testing.assert_array_equal(np.sum(masks, axis=0), np.ones(len(chosen)))


def test_no_candidate_is_named(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="at least one candidate"):
        candidate_slices(dataset, np.empty(0, np.int64))
