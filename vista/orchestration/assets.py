"""The assets that tie the DAGs together. An event says that there is something new; what, its consumer finds
out itself."""

from typing import Any

from airflow.sdk import Asset, AssetAlias

FOUNDATION_CHAMPION = Asset(name="foundation_champion", uri="vista://catalog/foundation-champion")
SUMMARIES = Asset(name="summaries", uri="vista://catalog/summaries")

MAYBE = {
    "promote": (AssetAlias("vista_promote"), FOUNDATION_CHAMPION),
    "deliver": (AssetAlias("vista_deliver"), SUMMARIES),
}
"""What a job may have changed. A plain outlet would have an event also when it changed nothing."""


def news_of(job: str, report: dict[str, Any], run: str) -> dict[str, Any] | None:
    """The extra of the event that a job's report makes; None if nothing is new.

    >>> news_of("deliver", {"delivered": False}, "r") is None
    True
    >>> news_of("promote", {"promoted": True, "new_foundation": False}, "r") is None
    True
    """
    if job == "deliver" and report["delivered"]:
        return {"space": report["space"], "epoch": report["epoch"], "run": run}
    if job == "promote" and report["new_foundation"]:
        release = report["release"]
        return {"release": release["id"], "space": release["space"], "epoch": release["epoch"], "run": run}
    return None
