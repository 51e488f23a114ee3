"""Labels that the source drew by chance: whatever foretells one has seen it.

Histories and features are made of these labels too, so that a leak through them shows; where labels are only
permuted afterwards (test_train_loop.py) it does not.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from training_data import DAYS, small_job, write_chance_events

from vista.config import DataConfig, HistoryCut, WindowConfig
from vista.data.dataset import Dataset
from vista.data.features import SMOOTHING
from vista.data.prepare import prepare_dataset
from vista.data.schema import Candidates
from vista.evaluate.metrics import auc
from vista.train.jobs import Days, Training
from vista.train.lightgbm_baseline import fit_lightgbm
from vista.train.loop import fit

Slot = Literal["lightgbm", "vista", "din"]
SLOTS: tuple[Slot, ...] = ("lightgbm", "vista", "din")


def prepared(path: Path, mode: HistoryCut) -> Path:
    """Users and items have no rates of their own; they are many, so that one label would weigh in a rate."""
    write_chance_events(path, users=1_000, items=2_000, rows=20_000)
    config = DataConfig(source="events", path=str(path), buckets=2, history_cut=mode)
    prepare_dataset(config, path / "data", WindowConfig())
    return path / "data"


def errors_from_half(data: Path, slot: Slot, candidates: Candidates | None = None) -> list[float]:
    """By how many standard errors of an AUC of noise the model's AUC is off .50, on the last day and on the
    day before; `candidates` in place of the data set's own."""
    torch.set_num_threads(1)
    job = small_job(data, "din" if slot == "din" else "vista", epochs=1, learning_rate=3e-3)
    training = Training(job.model_copy(update={"days": Days(first=0, valid=DAYS - 2, end=DAYS - 1)}))
    dataset = training.dataset
    if candidates is not None:
        dataset.__dict__["candidates"] = candidates
    if slot == "lightgbm":
        trees = fit_lightgbm(
            dataset, dataset.examples(0, DAYS - 2), dataset.examples(DAYS - 2, DAYS - 1), seed=0
        )
    else:
        fit(training.task())
    found = []
    for day in (DAYS - 1, DAYS - 2):
        examples = dataset.examples(day, day + 1)
        ids = examples.candidate_ids()
        scores = trees.predict(examples) if slot == "lightgbm" else training.predict(day, day + 1)[ids]
        labels = dataset.candidates.labels_CT[ids, 0]
        ones, zeros = int(labels.sum()), int((1 - labels).sum())
        error = np.sqrt((ones + zeros + 1) / (12 * ones * zeros))
        found.append(float(auc(labels, scores) - 0.5) / error)
    return found


@pytest.mark.parametrize("mode", ["event", "session", "day"])
@pytest.mark.parametrize("slot", SLOTS)
def test_labels_of_chance_are_not_foretold(slot: Slot, mode: HistoryCut, tmp_path: Path) -> None:
    """Every feature and every history is made of earlier labels: one that held the row's own would show."""
    assert np.abs(errors_from_half(prepared(tmp_path, mode), slot)).max() < 3


@pytest.mark.parametrize("slot", SLOTS)
def test_a_rate_that_counts_the_row_s_own_label_would_show(slot: Slot, tmp_path: Path) -> None:
    data = prepared(tmp_path, "event")
    dataset = Dataset.open(data)
    dense_CF = dataset.candidates.dense_CF.copy()
    names = dataset.file.dense
    count_C = np.expm1(dense_CF[:, names.index("item_log_count")]) + SMOOTHING
    rate_C = dense_CF[:, names.index("item_rate_label")]
    labels_C = dataset.candidates.labels_CT[:, 0]
    dense_CF[:, names.index("item_rate_label")] = (rate_C * count_C + labels_C) / (count_C + 1)
    leaking = replace(dataset.candidates, dense_CF=dense_CF)
    assert min(errors_from_half(data, slot, leaking)) > 3
