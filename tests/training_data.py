"""A small prepared data set, trainings on it and what they leave, for the tests of vista.train."""

import socket
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vista.config import (
    DataConfig,
    GeneratedConfig,
    HistoryCut,
    ModelConfig,
    RefreshConfig,
    Settings,
    TrainConfig,
    WindowConfig,
)
from vista.data.prepare import prepare_dataset
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch
from vista.delivery.publish import commit
from vista.evaluate.metrics import Metrics
from vista.evaluate.refresh_report import TrainedOn
from vista.jobs import run_stage
from vista.model.checkpoint import CheckpointMeta, save
from vista.model.ranker import SlotName
from vista.summary.export import ExportedEpoch
from vista.train.export_summaries import BucketExport, as_of_times, export_task
from vista.train.jobs import Days, RankerJob, Training
from vista.train.loop import World, fit
from vista.train.stage import Fitted, StageContext
from vista.train.state import Progress
from vista.train.train_foundation import FoundationReport, foundation_job, space_of

DAYS = 6


def prepare_small(path: Path, users: int = 60, history_cut: HistoryCut = "session") -> Path:
    """A data set of six days in `path`."""
    generated = GeneratedConfig(users=users, items=64, events_per_user=24, days=DAYS)
    data = DataConfig(source="generated", buckets=2, max_uih=16, history_cut=history_cut, generated=generated)
    prepare_dataset(data, path, WindowConfig())
    return path


def write_chance_events(folder: Path, *, users: int, items: int, rows: int) -> None:
    """A log of own events over six days, and its mapping; users, items and labels are drawn by chance."""
    random = np.random.default_rng(0)
    lines = [
        f"{random.integers(0, users)},{random.integers(0, items)},{1_767_225_600 + s},{random.integers(0, 2)}"
        for s in random.integers(0, DAYS * 86_400, rows)
    ]
    (folder / "log.csv").write_text("\n".join(["who,what,ts,label", *lines]) + "\n")
    (folder / "events.yaml").write_text("user: who\nitem: what\ntime: ts\ntime_unit: s\nlabel: label\n")


def small_job(dataset: Path, slot: SlotName = "vista", **changes: object) -> RankerJob:
    """Days 0 .. 2 train, day 3 validates; dropout is on, so that random numbers matter."""
    train = TrainConfig(
        epochs=2, max_candidates_per_batch=128, checkpoint_every_steps=3, workers=2, patience=2
    ).model_copy(update=changes)
    model = ModelConfig(width=8, heads=2, seeds=3, mlp=(16,), dropout=0.1, id_dropout=0.1, use_user_id=False)
    return RankerJob(
        dataset=dataset, slot=slot, model=model, train=train, max_uih=16, days=Days(first=0, valid=3, end=4)
    )


def settings_of(home: Path) -> Settings:
    """Embedded back ends below `home`."""
    return Settings.from_environment({"VISTA_HOME": str(home), "VISTA_RUNS": str(home / "runs")})


def untimed(progress: Progress) -> Progress:
    """Without what no two trainings share: how long their epochs took."""
    points = tuple(point for point in progress.curve if "epoch_s" not in point.values)
    assert len(points) < len(progress.curve)
    return progress.model_copy(update={"curve": points})


def two_workers(job: RankerJob, result: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Train with two gloo workers, without Ray."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    torch.multiprocessing.spawn(_worker, (2, port, job, str(result)), nprocs=2)
    text, weights = torch.load(result, weights_only=True)
    return Progress.model_validate_json(text), weights


def _worker(rank: int, size: int, port: int, job: RankerJob, result: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    training = Training(job)
    progress = fit(training.task(), World(rank, size))
    if rank == 0:
        torch.save((progress.model_dump_json(), training.model.state_dict()), result)
    torch.distributed.destroy_process_group()


def foundation_in_place(config: RefreshConfig, settings: Settings) -> StageContext:
    """A prepared run whose foundation is as it was initialised."""
    run_stage("prepare", config, settings)
    stage = StageContext.open(config, settings)
    training = Training(foundation_job(stage))
    test_day = stage.dataset.split().n
    meta = CheckpointMeta(
        kind=stage.recipe.foundation_slot,
        config=training.model.config,
        spec=training.model.spec,
        space=space_of(stage),
        trained_until_us=stage.dataset.day_start_us(stage.dataset.split().k),
        max_uih=training.max_uih,
    )
    result, nothing = stage.result("foundation"), TrainedOn(first_day=0, end_day=1, rows=0)
    unfinished = result.begin()
    kept = save(unfinished.checkpoint, training.model, meta)
    unfinished.write(Fitted(model="foundation", trained_on=nothing), training.tested(test_day)[0])
    result.end(unfinished)
    report = FoundationReport(
        space=kept.space,
        checkpoint=str(result.checkpoint),
        start=None,
        digest=kept.digest,
        trained_until_us=kept.trained_until_us,
        mlflow_run_id="",
        metrics=Metrics(auc=0.5, ne=1, log_loss=1, gauc=None, calibration=1, ece=0, rows=1),
        trained_on=nothing,
    )
    stage.run.keep_stage_report("train_foundation", report, seconds=0.0)
    return stage


def opened(stage: StageContext, as_of_us: int, space: str, **changes: object) -> Epoch:
    """A new epoch of the run's foundation."""
    foundation = stage.run.report_of("train_foundation")
    values: dict[str, object] = {
        "space": space,
        "export_id": f"{space}/{as_of_us}",
        "as_of_us": as_of_us,
        "trained_until_us": foundation["trained_until_us"],
        "checkpoint": foundation["checkpoint"],
        "codec": "int8",
        "buckets": stage.dataset.buckets,
    }
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        return catalog.open_epoch(**(values | changes))  # type: ignore[arg-type]


def published(stage: StageContext, epoch: Epoch) -> Epoch:
    """Export and publish an epoch."""
    attempt = Path(stage.settings.warehouse, epoch.space, str(epoch.epoch))
    export_again(stage, epoch, attempt)
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        return commit(catalog, epoch, attempt)


def epoch_times(stage: StageContext) -> list[int]:
    """When the run's foundation is to be exported."""
    return as_of_times(stage.dataset, stage.run.report_of("train_foundation")["trained_until_us"])


def export_again(stage: StageContext, epoch: Epoch, attempt: Path) -> None:
    """All shards of `epoch` into another directory, in this process."""
    one = ExportedEpoch(
        space=epoch.space,
        epoch=epoch.epoch,
        as_of_us=epoch.as_of_us,
        codec=epoch.codec,
        zstd=stage.recipe.delivery.zstd,
        made_by=epoch.checkpoint,
    )
    for bucket in range(epoch.buckets):
        export_task(
            BucketExport(
                dataset=stage.run.data,
                checkpoint=Path(epoch.checkpoint),
                bucket=bucket,
                epochs=(one,),
                attempts=(str(attempt),),
            )
        )
