"""The table of jobs: name -> configuration and function. Listing it imports nothing heavy.

A job is `function(config, settings) -> report`; `python -m vista <job>` runs it anywhere, Airflow only
calls it. A stage is a job of a refresh: its configuration is `RefreshConfig`, and `run_stage` keeps its
report in the run's directory, so that a resumed run does not do it again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vista.config import CheckConfig, Frozen, GridCell, GridConfig, RefreshConfig, Settings
from vista.errors import InputError
from vista.recipes import recipe_of
from vista.runs import RunDirectory, alone

LOG = logging.getLogger(__name__)

ADOPT = "adopt_foundation"
"""Does what `train_foundation` would do, in its place: the run keeps its report as that of this stage."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the table; functions are "module:function", resolved only when the job runs. `stale` says
    why the report that a run has kept of it counts no longer."""

    config: type[Frozen]
    function: str
    help: str
    stale: str = ""

    def load(self) -> Callable[[Any, Settings], Frozen]:
        return _function(self.function)  # type: ignore[no-any-return]


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


STAGES: dict[str, Job] = {
    "prepare": Job(RefreshConfig, "vista.train.prepare:prepare", "read events, validate them, cut examples"),
    "train_foundation": Job(
        RefreshConfig,
        "vista.train.train_foundation:train_foundation",
        "train the foundation model with Ray Train",
    ),
    "export_summaries": Job(
        RefreshConfig,
        "vista.train.export_summaries:export_summaries",
        "summarise all users and publish epochs",
        stale="vista.delivery.kept_reports:lost_epochs",
    ),
    "deliver": Job(
        RefreshConfig,
        "vista.delivery.deliver:deliver_epoch",
        "send the newest epoch to every region and verify it",
    ),
    "retrain_downstream": Job(
        RefreshConfig,
        "vista.train.retrain_downstream:retrain_downstream",
        "train the downstream model and the baselines, evaluate, decide",
        stale="vista.delivery.kept_reports:overtaken",
    ),
    "promote": Job(
        RefreshConfig,
        "vista.delivery.promote:promote_run",
        "make the run's models and epoch the release",
        stale="vista.delivery.kept_reports:lost_release",
    ),
    "clean_up": Job(
        RefreshConfig, "vista.train.clean_up:clean_up", "retire what nobody needs and write the report"
    ),
}
"""The stages of `production_refresh`, in order; each is one Ray job."""

FOUNDATION = ("prepare", "train_foundation")
SUMMARIES = ("export_summaries", "deliver")
RELEASE = ("retrain_downstream", "promote", "clean_up")
"""The groups of stages that DAGs are made of."""


class NoConfig(Frozen):
    """Of a job that has nothing to choose."""


OTHER_JOBS: dict[str, Job] = {
    ADOPT: Job(
        RefreshConfig,
        "vista.train.adopt_foundation:adopt_foundation",
        "take the newest released foundation as it is, instead of training one",
    ),
    "next_summaries": Job(
        NoConfig,
        "vista.delivery.next_summaries:next_summaries",
        "name the run with the newest summaries that no downstream model has been trained on",
    ),
    "check_delivery": Job(
        CheckConfig,
        "vista.serve.check_delivery:check_delivery",
        "coverage, age and lag of every region; replay or refill what is missing",
    ),
    "grid_cell": Job(GridCell, "vista.train.experiments.grid:grid_cell", "train one foundation of a grid"),
    "grid": Job(GridConfig, "vista.train.experiments.grid:grid", "table and MLflow run of a grid"),
}
"""What DAGs run beside the stages."""

JOBS = STAGES | OTHER_JOBS


def run_stage(name: str, config: RefreshConfig, settings: Settings, **told: Any) -> dict[str, Any]:
    """Run one stage, or return its report if this run has it already; `told` goes to the stage's function.

    A report that does not fit the catalog any more counts no longer, nor do those of later stages. One
    process at a time works in a run: another one waits, and then finds the report.
    Raises `InputError` if the run was started with other values, or for values that no run can have.
    """
    recipe_of(config)  # its limits first: a run keeps its configuration for ever, a mistyped one too
    run = RunDirectory.open(settings.runs, config)
    kept_as = "train_foundation" if name == ADOPT else name
    with alone(run.path / "lock"):
        _forget_stale(kept_as, run, settings)
        if run.stage(kept_as) is None:
            started = time.monotonic()
            report = job(name).load()(config, settings, **told)
            run.keep_stage_report(kept_as, report, seconds=time.monotonic() - started)
        return run.report_of(kept_as)


def _forget_stale(name: str, run: RunDirectory, settings: Settings) -> None:
    """Delete the kept report of a stage, and those of later ones, if it does not fit the catalog any more."""
    if run.stage(name) is None or not STAGES[name].stale:
        return
    if why := _function(STAGES[name].stale)(run, settings):
        stages = list(STAGES)
        later = stages[stages.index(name) :]
        LOG.warning("%s: done again are %s", why, ", ".join(later))
        for one in reversed(later):  # this one last: killed in between, the next run finds it again
            (run.path / "stages" / f"{one}.json").unlink(missing_ok=True)


def run_job(name: str, config: Frozen, settings: Settings) -> dict[str, Any]:
    """Run a job, a stage as `run_stage` does, and return its report."""
    if isinstance(config, RefreshConfig):
        return run_stage(name, config, settings)
    return job(name).load()(config, settings).model_dump(mode="json")


def job(name: str) -> Job:
    """The job called `name`. Raises `InputError` with the known names."""
    if name not in JOBS:
        raise InputError(f"job {name!r} does not exist: choose one of {', '.join(JOBS)}")
    return JOBS[name]
