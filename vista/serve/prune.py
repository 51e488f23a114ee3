"""What old runs take up: their data and weights are deleted; what they reported and logged stays."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from vista.config import Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Catalog
from vista.delivery.publish import attempt_name
from vista.delivery.release import needed_releases
from vista.errors import InputError, StageError
from vista.runs import LATEST, RunDirectory
from vista.serve.operations import actor_name

log = logging.getLogger(__name__)

BULKY = ("data", "train", "deliver", "ray-logs")
"""What a run holds beside its configuration, its stages' reports, its pages and its log."""

DAY_S = 24 * 3_600


def prune(settings: Settings, days: int, reason: str, *, dry_run: bool) -> str:
    """Delete the data and weights of every run in which nothing was written for `days` days.

    Whole stay `latest`, runs whose models serve or would after a rollback, those whose data a run that stays
    reads, and those of other deployments. Raises `InputError` if there is no folder of runs.
    """
    if not settings.runs.is_dir():
        raise InputError(f"{settings.runs} is no folder of runs: set VISTA_RUNS to it, or make a run first")
    folder = settings.runs.resolve()
    runs = [path for path in sorted(folder.iterdir()) if _is_run(path)]
    with closing(open_catalog(settings.catalog_url)) as catalog:
        kept = {path.resolve() for path in (folder / LATEST, *_needed_models(catalog))}

        @cache
        def attempts_of(space: str) -> set[str]:
            return {attempt_name(epoch.location) for epoch in catalog.list_epochs(space)}

        stay = {
            path
            for path in runs
            if _holds_any(path, kept) or not _is_older(path, days) or _is_of_another(path, attempts_of)
        }
        read = {(path / "data").resolve() for path in stay}
        sizes = {path: _bytes(path) for path in runs if path not in stay and not _holds_any(path, read)}
        pruned = {path: size for path, size in sizes.items() if size}
        total = f"{sum(pruned.values()) / 1e6:,.1f} MB"
        if pruned and not dry_run:  # before anything goes: nothing goes without a trace
            names = ", ".join(path.name for path in pruned)
            catalog.note(audit_line("prune", actor_name(), reason, before=f"{total} of {names}"))
    for path, size in pruned.items() if not dry_run else ():
        log.info("%s: deleting %.1f MB", path.name, size / 1e6)
        _delete(path)
    would = "would be" if dry_run else "are"
    return "\n".join(
        [
            *(f"{path.name}: {size / 1e6:,.1f} MB {would} deleted" for path, size in pruned.items()),
            f"{total} of {len(pruned)} runs {would} deleted, {len(runs) - len(pruned)} stay as they are",
        ]
    )


def _is_run(path: Path) -> bool:
    return not path.is_symlink() and RunDirectory(path).config_file.exists()


def _needed_models(catalog: Catalog) -> Iterator[Path]:
    for release in needed_releases(catalog):
        yield from (Path(release.foundation), Path(release.downstream))


def _holds_any(run: Path, places: set[Path]) -> bool:
    return any(place.is_relative_to(run) for place in places)


def _is_older(run: Path, days: int) -> bool:
    newest_s = max(path.lstat().st_mtime for path in (run, *run.rglob("*")))
    return newest_s < time.time() - days * DAY_S


def _is_of_another(run: Path, attempts_of: Callable[[str], set[str]]) -> bool:
    """Whether the run's epochs are in the table of another deployment, or cannot be known; `attempts_of` a
    space are the names of this deployment's."""
    try:
        exported = RunDirectory(run).stage("export_summaries")
    except StageError as error:
        log.warning("%s stays: %s", run.name, error)
        return True
    if exported is None:
        return False
    known = attempts_of(exported.report["space"])
    return not any(attempt_name(one["location"]) in known for one in exported.report["epochs"])


def _bytes(run: Path) -> int:
    """What would be freed; links into other runs count nothing."""
    places = [run / name for name in BULKY if not (run / name).is_symlink()]
    return sum(file.lstat().st_size for place in places for file in place.rglob("*") if file.is_file())


def _delete(run: Path) -> None:
    for place in (run / name for name in BULKY):
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            shutil.rmtree(place)
