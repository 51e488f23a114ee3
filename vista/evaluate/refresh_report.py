"""What a refresh found out, as a value: the content of report.json."""

import re

from pydantic import Field, field_validator

from vista.evaluate.bootstrap import PairedDifference
from vista.evaluate.gate import GateDecision
from vista.evaluate.metrics import CalibrationBins, Finite, Metrics


class TrainedOn(Finite):
    """The days [first_day, end_day) and the number of candidates that a model was fitted on."""

    first_day: int
    end_day: int
    rows: int


class ModelFigures(Metrics):
    """A model's metrics on the test day, of its first task; AUC of the others; and what it was trained on."""

    other_auc: dict[str, float] = Field(default_factory=dict)
    trained_on: TrainedOn


class RegionFigures(Finite):
    """How far one region's store is. `coverage` is the share of the users whose summary it holds;
    the age is None if it holds none."""

    coverage: float
    lag_records: int
    oldest_summary_age_s: float | None


class StageSeconds(Finite):
    """One stage of the run, in order."""

    name: str
    seconds: float


class Tracking(Finite):
    """Where MLflow keeps the run. A password in the URL is not kept."""

    url: str
    run_id: str

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:***@", url)


class TrainingCurve(Finite):
    """One metric of one training; `steps` are optimiser steps."""

    model: str
    metric: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


class SummaryMap(Finite):
    """Summaries of some users on their first two principal components, with one attribute of each user.

    `explained` are the two components' shares of the variance; `groups` are in the order of the legend, from
    low to high if they are `ordered`.
    """

    attribute: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    group: tuple[str, ...]
    groups: tuple[str, ...]
    ordered: bool
    explained: tuple[float, float]


class RefreshReport(Finite):
    """Everything that a refresh found out. `rows` are the data set's events, `test_rows` the candidates
    that every model is measured on. `release` is the one that serves now, None if there is none; `promoted`
    says whether this run made it, `reasons` why or why not."""

    run_id: str
    recipe: str
    dataset: str
    dataset_digest: str
    clock: str
    rows: int
    test_rows: int
    users: int
    oracle_auc: float | None
    models: dict[str, ModelFigures]
    slices: dict[str, dict[str, Metrics | None]]  # slice -> model
    paired: dict[str, PairedDifference]
    gate: GateDecision
    regions: dict[str, RegionFigures]
    space: str
    epoch: int
    release: str | None
    promoted: bool
    reasons: tuple[str, ...]
    mlflow: Tracking
    install_s: float | None
    stages: tuple[StageSeconds, ...]
    curves: tuple[TrainingCurve, ...]
    calibration: dict[str, CalibrationBins]  # model -> bins
    summary_map: SummaryMap | None
