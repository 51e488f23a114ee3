"""A small prepared data set and a training on it, for the tests of vista.train."""

from pathlib import Path

from vista.config import DataConfig, GeneratedConfig, ModelConfig, TrainConfig, WindowConfig
from vista.data.prepare import prepare_dataset
from vista.model.ranker import SlotName
from vista.train.jobs import Days, RankerJob

DAYS = 6


def prepare_small(path: Path, users: int = 60) -> Path:
    """A data set of six days in `path`."""
    generated = GeneratedConfig(users=users, items=64, events_per_user=24, days=DAYS)
    data = DataConfig(source="generated", buckets=2, max_uih=16, generated=generated)
    prepare_dataset(data, path, WindowConfig())
    return path


def small_job(dataset: Path, slot: SlotName = "vista", **changes: object) -> RankerJob:
    """Days 0 .. 2 train, day 3 validates; dropout is on, so that random numbers matter."""
    train = TrainConfig(
        epochs=2, max_candidates_per_batch=128, checkpoint_every_steps=3, workers=2, patience=2
    ).model_copy(update=changes)
    model = ModelConfig(
        width=8, heads=2, seeds=3, mlp=(16,), dropout=0.1, id_dropout=0.1, use_user_id=False
    )
    return RankerJob(
        dataset=dataset, slot=slot, model=model, train=train, max_uih=16, days=Days(first=0, valid=3, end=4)
    )
