"""Stage: summarise all users as of the start of every day from the end of the foundation's training to the
test day, and publish each as a whole epoch. A user whose events are those of the epoch before is not computed
again."""

import hashlib
import logging
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from vista.config import Frozen, RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Catalog, Epoch
from vista.delivery.publish import attempt_directory, commit, export_id
from vista.model.checkpoint import CheckpointMeta, load, load_meta
from vista.model.ranker import Ranker
from vista.summary.export import ExportedEpoch, export_bucket
from vista.summary.table import Work, whole_shard
from vista.train.compute import ray_session, run_tasks
from vista.train.delivery_run import end_export, track_delivery
from vista.train.experiments.fingerprint import code_digest
from vista.train.stage import StageContext

LOG = logging.getLogger(__name__)


class PublishedEpoch(Frozen):
    """One epoch of the table: its users, and those of them whose record was copied from an earlier epoch."""

    epoch: int
    as_of_us: int
    rows: int
    republished: int
    location: str


class ExportReport(Frozen):
    """`epochs` by as_of_us; the newest one is delivered. `saved_cpu_s` is what the model would have spent on
    the republished users; None if it was not needed at all."""

    space: str
    epochs: tuple[PublishedEpoch, ...]
    newest_epoch: int
    recomputed: int = 0
    republished: int = 0
    saved_cpu_s: float | None = None


class BucketExport(Frozen):
    """One bucket of every epoch: the work of one task. `attempts` are the epochs' directories."""

    dataset: Path
    checkpoint: Path
    bucket: int
    epochs: tuple[ExportedEpoch, ...]
    attempts: tuple[str, ...]


def export_summaries(config: RefreshConfig, settings: Settings) -> ExportReport:
    """Export and publish. Run again after a crash, it skips the shards that are whole."""
    stage = StageContext.open(config, settings)
    foundation = stage.run.report_of("train_foundation")
    checkpoint = Path(foundation["checkpoint"])
    meta = load_meta(checkpoint)
    tracked = track_delivery(stage, meta.space)
    with tracked.running():
        report = _report(meta.space, _published(stage, checkpoint, meta))
        end_export(tracked, report.model_dump(mode="json"))
    return report


def _published(stage: StageContext, checkpoint: Path, meta: CheckpointMeta) -> list[Epoch]:
    settings = stage.settings
    with closing(open_catalog(settings.catalog_url)) as catalog:
        times = as_of_times(stage.dataset, meta.trained_until_us)
        codec, buckets = stage.recipe.delivery.codec, stage.dataset.buckets
        opened = [
            open_export(catalog, meta, checkpoint, as_of_us, codec=codec, buckets=buckets)
            for as_of_us in times
        ]
        attempts = [_attempt(settings, stage.config, epoch) for epoch in opened]
        earlier = nearest(catalog.list_epochs(meta.space), opened, attempts, meta.digest)
        exported = _exported(stage, meta, opened, earlier)
        tasks = [
            task
            for bucket in range(stage.dataset.buckets)
            if (task := _missing(stage, checkpoint, bucket, opened, attempts, exported)).epochs
        ]
        if tasks:
            with ray_session():
                run_tasks(export_task, tasks, f"buckets of {len(opened)} epochs")
        return [commit(catalog, *both) for both in zip(opened, attempts, strict=True)]


def _report(space: str, published: list[Epoch]) -> ExportReport:
    work = [_work(one) for one in published]
    total = Work.total(work)
    LOG.info(
        "%s: %d epochs of %d users, %d records computed, %d copied from an earlier epoch",
        space, len(published), published[-1].rows, total.recomputed, total.republished,
    )  # fmt: skip
    return ExportReport(
        space=space,
        epochs=tuple(
            PublishedEpoch(
                epoch=one.epoch,
                as_of_us=one.as_of_us,
                rows=one.rows,
                republished=its_work.republished,
                location=one.location,
            )
            for one, its_work in zip(published, work, strict=True)
        ),
        newest_epoch=published[-1].epoch,
        recomputed=total.recomputed,
        republished=total.republished,
        saved_cpu_s=total.saved_cpu_s,
    )


def _work(epoch: Epoch) -> Work:
    """How a published epoch was made, as far as its files are still there."""
    shards = (whole_shard(epoch.location, bucket) for bucket in range(epoch.buckets))
    return Work.total(shard.work for shard in shards if shard is not None)


def as_of_times(dataset: Dataset, trained_until_us: int) -> list[int]:
    """The starts of the days up to the test day at which a model trained until then could exist."""
    first_day = dataset.days.first_after(trained_until_us)
    return [dataset.day_start_us(day) for day in range(first_day, dataset.split().n + 1)]


def export_task(task: BucketExport) -> int:
    """One bucket of some epochs, in a worker; returns how many shards it made."""
    model, meta, dataset = _loaded(task.checkpoint, task.dataset)
    for epoch, attempt in zip(task.epochs, task.attempts, strict=True):
        export_bucket(model, meta.max_uih, dataset, task.bucket, epoch, attempt)
    return len(task.epochs)


@lru_cache(maxsize=1)
def _loaded(checkpoint: Path, dataset: Path) -> tuple[Ranker, CheckpointMeta, Dataset]:
    """Once per worker process."""
    import torch

    torch.set_num_threads(1)
    model, meta = load(checkpoint)
    assert isinstance(model, Ranker), "a foundation model is a Ranker"
    return model, meta, Dataset.open(dataset)


def open_export(
    catalog: Catalog, meta: CheckpointMeta, checkpoint: Path, as_of_us: int, *, codec: str, buckets: int
) -> Epoch:
    """The epoch of an export; a new one instead of one that was withdrawn."""
    made_of = meta.digest
    while True:
        opened = catalog.open_epoch(
            space=meta.space,
            export_id=export_id(meta.space, made_of, as_of_us, codec),
            as_of_us=as_of_us,
            trained_until_us=meta.trained_until_us,
            checkpoint=str(checkpoint),
            codec=codec,
            buckets=buckets,
        )
        if not opened.withdrawn:
            return opened
        made_of = f"{meta.digest} instead of epoch {opened.epoch}"


def _attempt(settings: Settings, config: RefreshConfig, epoch: Epoch) -> str:
    """The same directory when this run is resumed, another one for every other run."""
    name = hashlib.sha256(f"{config.run_id}/{epoch.export_id}".encode()).hexdigest()[:32]
    return attempt_directory(settings.warehouse, epoch, name)


def nearest(
    known: list[Epoch], opened: list[Epoch], attempts: list[str], checkpoint_digest: str
) -> list[str | None]:
    """For each opened epoch the files of the one nearest to it in time from which records may be copied.

    That is a published one of the same checkpoint and codec that is not withdrawn, or one opened before it,
    whose files a task has made when it comes to it. None if there is none.
    """
    whole = {
        one.as_of_us: one.location
        for one in known
        if one.published
        and not one.withdrawn
        and one.export_id == export_id(one.space, checkpoint_digest, one.as_of_us, opened[0].codec)
    }
    found: list[str | None] = []
    for epoch, attempt in zip(opened, attempts, strict=True):
        times = sorted(whole, key=lambda as_of_us: abs(as_of_us - epoch.as_of_us))
        found.append(whole[times[0]] if times else None)
        if not epoch.published:
            whole[epoch.as_of_us] = attempt
    return found


def _exported(
    stage: StageContext, meta: CheckpointMeta, opened: list[Epoch], earlier: list[str | None]
) -> list[ExportedEpoch]:
    """How each of the opened epochs is made."""
    made_by = f"{meta.digest} {code_digest('vista.summary.export')}"
    return [
        ExportedEpoch(
            space=epoch.space,
            epoch=epoch.epoch,
            as_of_us=epoch.as_of_us,
            codec=epoch.codec,
            zstd=stage.recipe.delivery.zstd,
            made_by=made_by,
            earlier=before,
            states=stage.recipe.delivery.states,
        )
        for epoch, before in zip(opened, earlier, strict=True)
    ]


def _missing(
    stage: StageContext,
    checkpoint: Path,
    bucket: int,
    opened: list[Epoch],
    attempts: list[str],
    exported: list[ExportedEpoch],
) -> BucketExport:
    """What is not there yet of one bucket."""
    missing = [
        (one, attempt)
        for one, epoch, attempt in zip(exported, opened, attempts, strict=True)
        if not epoch.published and whole_shard(attempt, bucket) is None
    ]
    return BucketExport(
        dataset=stage.run.data,
        checkpoint=checkpoint,
        bucket=bucket,
        epochs=tuple(one for one, _ in missing),
        attempts=tuple(attempt for _, attempt in missing),
    )
