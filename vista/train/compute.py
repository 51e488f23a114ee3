"""Ray: a session on the head that runs this job, or a local one; trainings with Ray Train; plain tasks."""

import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from vista.errors import StageError, VistaError
from vista.runs import drop_if_damaged, read_as, reading, write_whole
from vista.train.jobs import Job, Training
from vista.train.loop import LOG_EVERY_S, Snapshot, World, fit
from vista.train.state import Progress, read_state
from vista.train.tracking import CurveLog, Tracked, flattened

LOG = logging.getLogger(__name__)
LOCAL_OBJECT_STORE_BYTES = 256 * 1024**2
MAX_FAILURES = 3
CHECKPOINTS_KEPT = 2
PLACES = ("dataset", "foundation", "start", "catalog_url")
"""Fields of a job that say where something lies, not what it is."""
SIGN_OF_LIFE_S = 30.0
"""Between two lines that say the same."""

RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # `report` waits for the next poll, 2 s by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy machine needs more than the default 60 s
}
"""Read by Ray when it is imported."""

T = TypeVar("T")
R = TypeVar("R")


def local_ray_settings() -> dict[str, str]:
    """For a head of our own: a token, and no process that only watches for the preemption of cloud nodes."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",  # as above; 30 s by default
    }


@contextmanager
def ray_session(workers: int = 1) -> Iterator[None]:
    """Connect to the head of `RAY_ADDRESS` (set inside Ray jobs), else run a local one until the end.

    A local head has room for `workers` and asks for a token, because Ray listens beyond loopback.
    """
    local = "RAY_ADDRESS" not in os.environ
    for name, value in (RAY_SETTINGS | (local_ray_settings() if local else {})).items():
        os.environ.setdefault(name, value)
    import ray

    if local:
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
        )
    else:
        ray.init(logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def train_on_ray(job: Job, tracked: Tracked, *, storage: Path, name: str) -> Path:
    """Train with Ray Train; returns the directory of the final state.

    The same `name` and `storage` resume what was interrupted. A worker that dies is replaced, and the
    training goes on from the last checkpoint. Raises `StageError` if that does not help, or if the training
    was begun with other values. Every worker has a GPU of its own if the head knows of as many.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    curve = storage / f"{name}.curve.json"
    keep_values(job, storage / f"{name}.job.json")
    drop_damaged(storage / name, curve)
    on_gpus = enough_gpus(name, job.train.workers)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "curve": curve},
        # gradients are summed where the model is, counts on the CPU
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=job.train.workers, use_gpu=on_gpus),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    try:
        with _followed(tracked, curve):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise StageError(
            f"training {name!r} failed {MAX_FAILURES + 1} times ({error}): see the workers' log above, mend "
            "the cause and run it again, it resumes"
        ) from error
    assert result.checkpoint is not None, "every epoch ends with a checkpoint"
    return Path(result.checkpoint.path)


def enough_gpus(name: str, workers: int) -> bool:
    """Whether a training runs on GPUs; says so, with the numbers that decide it."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(resources.get("GPU", 0))
    on = "GPUs" if gpus >= workers else "CPUs"
    LOG.info("training %r: on %s (it has %d workers, Ray's head knows of %d GPUs)", name, on, workers, gpus)
    return gpus >= workers


def keep_values(job: Job, kept: Path) -> None:
    """Write down what is trained, or compare it with what a resumed training was begun with: a state of the
    same shape would be read without complaint. Raises `StageError` that names what differs."""
    now = {name: value for name, value in flattened(job).items() if name not in PLACES}
    remedy = f"undo the change, or delete {kept.parent} and run the stage again, which trains anew"
    if not kept.exists():
        write_whole(kept, json.dumps(now, indent=2))
        return
    with reading(kept, remedy):
        before = dict(json.loads(kept.read_bytes()))
    changed = [
        f"{name} was {before.get(name)} and is {now.get(name)}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise StageError(f"the training was begun with other values ({'; '.join(changed)}): {remedy}")


def drop_damaged(run: Path, curve: Path) -> None:
    """Delete what an earlier attempt at a training has left, if its content is damaged: it is made anew, and
    the training then ends in the same weights.

    Ray writes its list of checkpoints in place: a kill in that moment leaves one that it refuses for ever.
    """
    for left, check in ((run, _check_checkpoints), (curve, read_curve)):
        if left.exists():
            drop_if_damaged(left, check)


def _check_checkpoints(run: Path) -> None:
    """Raises `StageError` if a checkpoint that Ray would go on from, or its list of them, is damaged."""
    listed = run / "checkpoint_manager_snapshot.json"
    if not listed.exists():
        return
    with reading(listed, "it is cut off"):
        text = listed.read_text(encoding="utf-8")
        json.loads(text)
    for checkpoint in sorted(set(re.findall(r'"(checkpoint_\d[^"]*)"', text))):
        read_state(run / checkpoint)


def read_curve(path: Path) -> Progress:
    """What rank 0 keeps for the driver. Raises `StageError` if it is damaged."""
    return read_as(Progress, path, "run the stage again (`make run RESUME=1`): it is written anew")


def _train_worker(sent: dict[str, Any]) -> None:
    """One worker of a training: its group is set up, checkpoints go through Ray, rank 0 keeps the curve."""
    import ray.train
    from ray.train import Checkpoint
    from ray.train.torch import get_device

    log_like_the_driver()
    torch.set_num_threads(1)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())

    def keep(snapshot: Snapshot) -> None:
        metrics = {"global_step": snapshot.progress.global_step}
        if world.rank > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as directory:
            snapshot.write(Path(directory))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))
        write_whole(sent["curve"], snapshot.progress.model_dump_json())

    task = Training(sent["job"], get_device()).task()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        progress = fit(task, world, keep=keep)
    else:
        with checkpoint.as_directory() as directory:
            progress = fit(task, world, resume=Path(directory), keep=keep)
    if world.rank == 0:  # a training that was done before it was resumed has kept nothing
        write_whole(sent["curve"], progress.model_dump_json())


def log_like_the_driver(doing: str = "") -> None:
    """Lines with time and name, in a worker: Ray's own handlers write neither. `doing` tells apart what runs
    side by side."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(name)s {doing}%(message)s"))
    ours = logging.getLogger("vista")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = [handler]


@contextmanager
def _followed(tracked: Tracked, curve: Path) -> Iterator[None]:
    """Log what rank 0 keeps at `curve` into MLflow, during a training and once more after it. The training
    goes on while MLflow is away; what is not logged meanwhile is logged when it answers.

    The driver does it, because it has nothing else to do, and importing mlflow costs a worker seconds.
    """
    log, ended = CurveLog(tracked), threading.Event()

    def add() -> None:
        if curve.exists():
            log.add(read_curve(curve).curve)

    def add_or_warn(warns: bool = True) -> bool:
        try:
            add()
        except VistaError as error:
            if warns:
                LOG.warning("the curve in MLflow stands still until it answers: %s", error)
            return False
        return True

    def follow() -> None:
        well = True
        while not ended.wait(LOG_EVERY_S):
            well = add_or_warn(warns=well)

    follower = threading.Thread(target=follow, name="vista-curve", daemon=True)
    follower.start()
    try:
        try:
            yield
        finally:
            ended.set()
            follower.join()
    except BaseException:
        add_or_warn()  # what ended the training is what has to be told
        raise
    add()


def run_tasks(function: Callable[[T], R], arguments: Sequence[T], what: str) -> list[R]:
    """`function` of every argument, as Ray tasks of one CPU; a task whose worker dies runs again.

    Raises the error of a task that failed, if it is a `VistaError`, else `StageError`.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    remote = ray.remote(num_cpus=1, max_retries=MAX_FAILURES)(function)
    pending = [remote.remote(argument) for argument in arguments]
    results, said_at = list(pending), time.monotonic()
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=LOG_EVERY_S)
            ray.get(done)
            if done or time.monotonic() - said_at > SIGN_OF_LIFE_S:
                LOG.info("%s: %d of %d done", what, len(results) - len(pending), len(results))
                said_at = time.monotonic()
        values: list[R] = ray.get(results)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, VistaError):
            raise cause from error
        raise StageError(
            f"{what}: a task failed ({cause}): mend the cause and run the stage again"
        ) from error
    return values
