"""Whether the catalog has what the kept report of a stage says: it may have been restored from a backup.

An epoch that was withdrawn since, or has expired, is still there: that is no loss.
"""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.publish import attempt_name


def lost_epochs(report: Mapping[str, Any], settings: Settings) -> str:
    """Which epochs of an export's report the catalog does not have, in words; empty if it has all."""
    space = report["space"]
    with closing(open_catalog(settings.catalog_url)) as catalog:
        published = {
            one.epoch: attempt_name(one.location) for one in catalog.list_epochs(space) if one.published
        }
    lost = [
        str(one["epoch"])
        for one in report["epochs"]
        if published.get(one["epoch"]) != attempt_name(one["location"])
    ]
    return f"epoch {', '.join(lost)} of {space}" if lost else ""


def lost_release(report: Mapping[str, Any], settings: Settings) -> str:
    """The release of a promotion's report, in words, if the catalog does not have it; else empty."""
    if not report["promoted"]:
        return ""
    release = report["release"]["id"]
    with closing(open_catalog(settings.catalog_url)) as catalog:
        known = {one.id for one in catalog.releases()}
    return "" if release in known else f"release {release}"
