"""The table of jobs: name -> configuration and function. Listing it imports nothing heavy.

A job is `function(config, settings) -> report`; `python -m vista <job>` runs it anywhere, Airflow only
calls it. A stage is a job of a refresh: its configuration is `RefreshConfig`, and `run_stage` keeps its
report in the run's directory, so that a resumed run does not do it again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vista.config import Frozen, RefreshConfig, Settings
from vista.errors import InputError
from vista.recipes import recipe_of
from vista.runs import RunDirectory


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the table; `function` is "module:function", resolved only when the job runs."""

    config: type[Frozen]
    function: str
    help: str

    def load(self) -> Callable[[Any, Settings], Frozen]:
        module, _, function = self.function.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]


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
    ),
    "promote": Job(
        RefreshConfig, "vista.delivery.promote:promote_run", "make the run's models and epoch the release"
    ),
    "clean_up": Job(
        RefreshConfig, "vista.train.clean_up:clean_up", "retire what nobody needs and write the report"
    ),
}
"""The stages of `production_refresh`, in order; each is one Ray job."""


def run_stage(name: str, config: RefreshConfig, settings: Settings) -> dict[str, Any]:
    """Run one stage, or return its report if this run has it already.

    Raises `InputError` if the run was started with other values, or for values that no run can have.
    """
    recipe_of(config)  # its limits first: a run keeps its configuration for ever, a mistyped one too
    run = RunDirectory.open(settings.runs, config)
    if run.stage(name) is None:
        started = time.monotonic()
        report = job(name).load()(config, settings)
        run.keep_stage_report(name, report, seconds=time.monotonic() - started)
    return run.report_of(name)


def job(name: str) -> Job:
    """The job called `name`. Raises `InputError` with the known names."""
    if name not in STAGES:
        raise InputError(f"job {name!r} does not exist: choose one of {', '.join(STAGES)}")
    return STAGES[name]
