"""Recipes: functions that return a whole run. `recipe_of` applies the form's scalars to one."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import ValidationError

from vista.config import (
    DataConfig,
    DeliveryConfig,
    GateConfig,
    GeneratedConfig,
    ModelConfig,
    Recipe,
    RefreshConfig,
    TrainConfig,
)
from vista.errors import InputError


def generated(data_dir: str) -> Recipe:
    """Seeded data with a planted long-range signal: nothing to download, an oracle to compare with."""
    return Recipe(
        name="generated",
        data=DataConfig(source="generated", max_uih=100, history_cut="session"),
        model=ModelConfig(
            seeds=16,
            mlp=(128, 64),
            use_dense_features=False,
            use_user_id=False,
            embedding_init=0.05,  # nothing is rare here, and 1e-4 needs twice the epochs
            reconstruction_weight=0.0,  # at 0.02 the first epoch learns nothing (EXPERIMENTS.md)
        ),
        foundation=TrainConfig(epochs=4, max_candidates_per_batch=512),
        downstream=TrainConfig(epochs=2, max_candidates_per_batch=512),
        baselines=("no_history", "mean_pool", "din", "lightgbm", "vista_newest_tenth"),
    )


def incremental(data_dir: str) -> Recipe:
    """Generated data with summaries that follow their users event by event, exactly and in constant time.

    That takes one layer, no positions, no truncation; the table holds every user's state beside the record.
    """
    base = generated(data_dir)
    return Recipe(
        name="incremental",
        data=base.data.model_copy(update={"max_uih": 1_000_000}),
        model=base.model.model_copy(update={"positions": False}),
        foundation=base.foundation,
        downstream=base.downstream,
        delivery=DeliveryConfig(states=True),
    )


def smoke(data_dir: str) -> Recipe:
    """The smallest run that goes through every stage; for tests."""
    return Recipe(
        name="smoke",
        data=DataConfig(
            source="generated",
            buckets=4,
            max_uih=40,
            generated=GeneratedConfig(users=120, items=200, events_per_user=40, days=6),
        ),
        model=ModelConfig(width=16, heads=2, seeds=4, mlp=(32,), use_dense_features=False, use_user_id=False),
        foundation=TrainConfig(
            max_tokens_per_batch=8_192, max_candidates_per_batch=256, checkpoint_every_steps=5
        ),
        downstream=TrainConfig(
            max_tokens_per_batch=8_192, max_candidates_per_batch=256, checkpoint_every_steps=5
        ),
    )


KUAIRAND_TASKS = {"is_click": 1.0, "long_view": 0.2, "is_like": 0.2}
"""Weights of the losses: with equal ones clicks, the reported task, lose .002 AUC (EXPERIMENTS.md)."""


def kuairand(data_dir: str) -> Recipe:
    """KuaiRand short-video logs; days are cut at UTC+8, as in the source's own `date`."""
    return Recipe(
        name="kuairand",
        data=DataConfig(
            source="kuairand", path=data_dir, day_offset_s=8 * 3_600, max_uih=200,
            tasks=tuple(KUAIRAND_TASKS),
        ),
        model=ModelConfig(
            seeds=16,
            task_weights=tuple(KUAIRAND_TASKS.values()),
            reconstruction_weight=0.0,  # 0.1 costs .006 AUC (EXPERIMENTS.md)
        ),
        foundation=TrainConfig(max_candidates_per_batch=512),
        downstream=TrainConfig(max_candidates_per_batch=512),
    )  # fmt: skip


def kuairand_cotrained(data_dir: str) -> Recipe:
    """KuaiRand with a foundation of VISTA and HSTU, trained together (the paper's table 3)."""
    return kuairand(data_dir).model_copy(
        update={"name": "kuairand_cotrained", "foundation_slot": "vista_hstu"}
    )


def kuairand_paper(data_dir: str) -> Recipe:
    """KuaiRand with the hyper-parameters of the paper (appendix C.2), until a plateau: hours."""
    model, train = appendix_c2("kuairand")
    weights = {"task_weights": tuple(KUAIRAND_TASKS.values())}
    return kuairand(data_dir).model_copy(
        update={
            "name": "kuairand_paper",
            "model": model.model_copy(update=weights),
            "foundation": train,
            "downstream": train,
        }
    )


def amazon_electronics(data_dir: str) -> Recipe:
    """AmazonElectronics_x1 with the hyper-parameters of appendix C.2. Its rows have no times: the clock
    is virtual (30 days per user)."""
    model, train = appendix_c2("amazon")
    return Recipe(
        name="amazon_electronics",
        data=DataConfig(source="amazon_electronics", path=data_dir, clock="user_fraction", max_uih=200),
        model=model,
        foundation=train,
        downstream=train,
    )


def movielens(data_dir: str) -> Recipe:
    """MovieLens ratings; users live within one sitting, so the clock is virtual (30 days per user)."""
    return Recipe(
        name="movielens",
        data=DataConfig(source="movielens", path=data_dir, clock="user_fraction", max_uih=200),
        model=ModelConfig(seeds=16, reconstruction_weight=0.0),
    )


PRODUCTION_GATE = GateConfig(max_point_ne_loss=0.003)


def events(data_dir: str) -> Recipe:
    """The user's own events, mapped by the YAML file in `data_dir`."""
    return Recipe(
        name="events",
        data=DataConfig(source="events", path=data_dir),
        model=ModelConfig(seeds=16, reconstruction_weight=0.0),
        gate=PRODUCTION_GATE,
    )


def simplified_production(data_dir: str) -> Recipe:
    """The user's own events with the hyper-parameters of appendix C.2 for the paper's simplified production
    data: histories of 2,000, batch norm, until the first epoch without a better AUC."""
    model, train = appendix_c2("production")
    return Recipe(
        name="simplified_production",
        data=DataConfig(source="events", path=data_dir, max_uih=2_000),
        model=model,
        foundation=train,
        downstream=train,
    )


def industrial(data_dir: str) -> Recipe:
    """Production size (appendix C.2): histories of 2,000 to 16,000 of the user's own events, three layers in
    both stages. A worker needs 4 GB to train it (README)."""
    train = TrainConfig(max_tokens_per_batch=131_072, max_candidates_per_batch=4_096)
    return Recipe(
        name="industrial",
        data=DataConfig(source="events", path=data_dir, max_uih=16_000),
        model=ModelConfig(width=256, layers=3, target_layers=3),
        foundation=train,
        downstream=train,
        gate=PRODUCTION_GATE,
    )


RECIPES: dict[str, Callable[[str], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        smoke, generated, incremental, kuairand, kuairand_cotrained, kuairand_paper, amazon_electronics,
        movielens, events, simplified_production, industrial,
    )
}  # fmt: skip


def appendix_c2(column: Literal["amazon", "kuairand", "production"]) -> tuple[ModelConfig, TrainConfig]:
    """The hyper-parameters that the paper gives all its models alike: a column of the table in appendix C.2.

    "Attention layers" is read as those of both stages. The table names no number of epochs: patience ends a
    training. `max_tokens_per_batch` lets batches of long histories be as large as the table says.
    """
    train = partial(TrainConfig, schedule="plateau", epochs=100, max_tokens_per_batch=524_288, workers=1)
    match column:
        case "amazon":
            model = ModelConfig(width=64, mlp=(1_024, 512, 256))
            return model, train(
                learning_rate=5e-4, max_candidates_per_batch=1_024, patience=4, embedding_l2=0.005
            )
        case "kuairand":
            return ModelConfig(), train(learning_rate=1e-4, max_candidates_per_batch=1_024, patience=5)
        case "production":
            model = ModelConfig(layers=2, target_layers=2, mlp_batch_norm=True, max_positions=2_048)
            return model, train(learning_rate=1e-3, max_candidates_per_batch=128, patience=1)


def recipe_of(config: RefreshConfig) -> Recipe:
    """The recipe that `config` names, with its scalars applied.

    Raises `InputError` for an unknown name or for values that do not fit together.
    """
    if config.recipe not in RECIPES:
        raise InputError(f"recipe {config.recipe!r} does not exist: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[config.recipe](config.data_dir)
    overrides: dict[str, dict[str, object]] = {
        "data": {"max_uih": config.max_uih, "seed": config.seed, "until": config.until},
        "model": {
            "seeds": config.seeds,
            "width": config.width,
            "layers": config.layers,
            "recent_tail": config.recent_tail,
        },
        "foundation": {
            "epochs": config.epochs,
            "learning_rate": config.learning_rate,
            "workers": config.workers,
            "seed": config.seed,
        },
        "downstream": {"workers": config.workers, "seed": config.seed},
        "delivery": {"codec": config.codec},
    }
    values = recipe.model_dump()
    for part, changes in overrides.items():
        values[part] |= {name: value for name, value in changes.items() if value is not None}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {message}" if where else message) from error
