"""The MLflow run of a refresh's summaries: what was exported and from what, what the regions hold."""

from collections.abc import Mapping
from typing import Any

from vista.train.stage import StageContext
from vista.train.tracking import Input, Tracked

DELIVERY = "vista-delivery"
"""The experiment."""


def epoch_input(space: str, epoch: Mapping[str, Any], context: str) -> Input:
    """One epoch of the table, of the export's report. Its number is its digest: it never changes."""
    return Input(name=space, digest=str(epoch["epoch"]), uri=epoch["location"], context=context)


def track_delivery(stage: StageContext, space: str) -> Tracked:
    """This run's own, made unless it exists; it names the foundation's."""
    tracked = stage.track(DELIVERY, space)
    if foundation := stage.run.report_of("train_foundation")["mlflow_run_id"]:
        tracked.tag({"vista.foundation_run": foundation})
    return tracked


def end_export(tracked: Tracked, exported: Mapping[str, Any]) -> None:
    """Log what the report of the stage `export_summaries` says, and link the epochs."""
    epochs = exported["epochs"]
    tracked.add_inputs([epoch_input(exported["space"], one, "export") for one in epochs])
    tracked.tag({"vista.epoch": str(exported["newest_epoch"]), "vista.table": epochs[-1]["location"]})
    figures = {name: exported[name] for name in ("recomputed", "republished")}
    tracked.finish(figures | {"epochs": len(epochs), "users": epochs[-1]["rows"]})


def end_delivery(tracked: Tracked, delivered: Mapping[str, Any]) -> None:
    """Log what the report of the stage `deliver` says of every region."""
    metrics = {"delivered": float(delivered["delivered"]), "appended_records": delivered["appended_records"]}
    for region, figures in delivered["regions"].items():
        for name in ("coverage", "lag_records", "oldest_summary_age_s"):
            if figures[name] is not None:
                metrics[f"{name}/{region}"] = figures[name]
    tracked.finish(metrics)
