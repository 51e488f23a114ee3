"""Whether the kept report of a stage still fits the catalog: that may have been restored from a backup, and
another run or a person may have released something meanwhile.

An epoch that was withdrawn since, or has expired, is still there: that is no loss.
"""

from contextlib import closing

from vista.config import Settings
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Catalog, Release
from vista.delivery.publish import attempt_name
from vista.delivery.release import current_release
from vista.runs import RunDirectory


def lost_epochs(run: RunDirectory, settings: Settings) -> str:
    """Which epochs of the export's report the catalog does not have, in words; empty if it has all."""
    report = run.report_of("export_summaries")
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
    return f"epoch {', '.join(lost)} of {space} is not in the catalog any more" if lost else ""


def lost_release(run: RunDirectory, settings: Settings) -> str:
    """The release of the promotion's report, in words, if the catalog does not have it; else empty."""
    report = run.report_of("promote")
    if not report["promoted"]:
        return ""
    release = report["release"]["id"]
    with closing(open_catalog(settings.catalog_url)) as catalog:
        known = {one.id for one in catalog.releases()}
    return "" if release in known else f"release {release} is not in the catalog any more"


def overtaken(run: RunDirectory, settings: Settings) -> str:
    """That another release serves than the one that the retraining's models were judged against, in words;
    empty if it does not, and once their promotion is decided or done."""
    champion = run.report_of("retrain_downstream")["champion"]["release"]
    with closing(open_catalog(settings.catalog_url)) as catalog:
        current, own = current_release(catalog), release_since(run, catalog)
    serves = None if current is None else current.id
    if serves == champion or own is not None or run.stage("promote") is not None:
        return ""
    return f"release {serves} serves, and the models were judged against {champion}"


def release_since(run: RunDirectory, catalog: Catalog) -> Release | None:
    """The release that took the run's models since they were judged, None if none did: the report of a
    promotion that was cut off after its swap does not say so."""
    report, releases = run.report_of("retrain_downstream"), catalog.releases()
    champion, known = report["champion"]["release"], [None, *(one.id for one in releases)]
    since = releases[known.index(champion) :] if champion in known else []
    return next((one for one in since if one.downstream == report["downstream"]), None)
