"""Public splits: which rows of a prepared data set train, validate and test.

E examples.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vista.data.dataset import Dataset
from vista.data.frozen import frozen
from vista.data.schema import Examples
from vista.train.experiments.blocks import DateSplit, UserSplit


@dataclass(frozen=True, slots=True)
class Rows:
    """The examples of a block, each part with the same candidate table."""

    train: Examples
    valid: Examples
    test: Examples

    @classmethod
    def of(cls, dataset: Dataset, split: DateSplit | UserSplit) -> "Rows":
        every = dataset.examples(dataset.info.first_day, dataset.info.last_day + 1)
        if isinstance(split, DateSplit):
            every = _one_by_one(every)  # rows of one moment may be listed under two dates
            date_E = dataset.source_date_C[every.candidate_start_E]
            test_E, tail_E = date_E >= split.test_from, date_E >= split.valid_from
        else:
            newer_E, tail_length_E = _newer_of_the_user(every.user_id_E, split.parts)
            test_E, tail_E = newer_E < tail_length_E, newer_E < 2 * tail_length_E
        return cls(every.where(~tail_E), every.where(tail_E & ~test_E), every.where(test_E))

    def permuted(self, seed: int) -> "Rows":
        """The same rows with the labels of each part dealt out anew; histories and features stay."""
        rng = np.random.default_rng(seed)
        labels_CT = self.train.candidates.labels_CT.copy()
        parts = (self.train, self.valid, self.test)
        for ids in (part.candidate_ids() for part in parts):
            labels_CT[ids] = labels_CT[rng.permutation(ids)]
        candidates = replace(self.train.candidates, labels_CT=labels_CT)
        return Rows(*(replace(part, candidates=candidates) for part in parts))

    def frozen_test(self, dataset: Dataset) -> Examples:
        """The test rows with each user's history as of the user's first one: what GAUC is measured on."""
        return frozen(dataset, self.test)

    def known_until_us(self) -> int:
        """Just after the newest training row: ids that appear later are unseen."""
        return int(self.train.candidates.event_time_us_C[self.train.candidate_ids()].max()) + 1

    def test_ids(self) -> NDArray[np.int64]:
        """Candidate ids of the test rows, in ascending order: how scores are kept."""
        return np.sort(self.test.candidate_ids())


def _one_by_one(examples: Examples) -> Examples:
    """Each candidate as an example of its own, with the history of the one that held it."""
    example_C = np.repeat(np.arange(len(examples)), examples.num_candidates_E)
    return replace(
        examples.where(example_C),
        candidate_start_E=examples.candidate_ids(),
        num_candidates_E=np.ones(len(example_C), np.int64),
    )


def _newer_of_the_user(
    user_id_E: NDArray[np.int64], parts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many examples of the same user follow each one, and ceil(the user's number / parts).

    >>> _newer_of_the_user(np.array([7, 7, 7, 9]), 2)
    (array([2, 1, 0, 0]), array([2, 2, 2, 1]))
    """
    _, user_E, number_U = np.unique(user_id_E, return_inverse=True, return_counts=True)
    end_E = np.cumsum(number_U)[user_E]
    return end_E - 1 - np.arange(len(user_id_E)), -(-number_U // parts)[user_E]
