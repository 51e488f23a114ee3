"""What a run is: frozen models without behaviour. Their values are MLflow's parameters.

Nothing here reads a file or the environment, except `Settings.from_environment`, which is called once, by
`vista.__main__`. Units are in the names (`_s` seconds, `_us` microseconds, `_bytes`).
"""

import os
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from vista.errors import InputError


class Frozen(BaseModel):
    """A value: immutable, hashable by content, refusing unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SourceName = Literal["generated", "kuairand", "movielens", "amazon_electronics", "events"]
HistoryCut = Literal["event", "session", "day"]
Clock = Literal["event_time", "user_fraction"]
AttentionName = Literal["qla", "linear", "softmax", "silu"]
Phi = Literal["silu", "shifted_elu", "identity", "relu"]
BaselineName = Literal[
    "no_history", "mean_pool", "ttsn", "din", "mha", "sasrec", "hstu", "lightgbm", "vista_newest_tenth"
]


NUMBERS = r"^\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*$"
DAY = r"^(\d{4}-\d{2}-\d{2})?$"


class GeneratedConfig(Frozen):
    """The size of the generated data set; the planted signal is fixed by `vista.data.sources.generated`."""

    users: int = Field(1_500, ge=1)
    items: int = Field(256, ge=64)
    events_per_user: int = Field(100, ge=1)
    long_users: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="further users, by their numbers of events"
    )
    days: int = Field(10, ge=4)
    seed: int = 0


class DataConfig(Frozen):
    """Where events come from and how examples are cut from them."""

    source: SourceName
    path: str = ""
    buckets: int = Field(32, ge=1, le=65_536)
    clock: Clock = "event_time"
    day_offset_s: int = Field(0, ge=-86_400, le=86_400)
    history_cut: HistoryCut = "session"
    session_gap_s: int = Field(1_800, ge=0)
    until: str = Field("", pattern=DAY, description="newest day that is read, in the source's zone")
    max_uih: int = Field(200, ge=1)
    max_candidates_per_user: int = Field(10_000, ge=1)
    tasks: tuple[str, ...] = Field(("label",), min_length=1)
    value_buckets: int = Field(16, ge=1)
    max_reject_fraction: float = Field(0.01, ge=0.0, le=1.0)
    seed: int = 0
    generated: GeneratedConfig = GeneratedConfig()


class WindowConfig(Frozen):
    """How the days of a first refresh are used: foundation [0, k), epochs as of k .. n, test on day n."""

    foundation_fraction: float = Field(0.6, gt=0.0, lt=1.0, description="k = max(1, round(fraction * n))")
    valid_days: int = Field(1, ge=1, description="newest days of a training range, kept for early stopping")


class ModelConfig(Frozen):
    """The shape of the model; names as in GLOSSARY.md, defaults as in the paper's appendix C.2 (KuaiRand)."""

    width: int = Field(32, ge=8)
    heads: int = Field(4, ge=1)
    layers: int = Field(1, ge=1, le=16)
    seeds: int = Field(128, ge=1, le=4_096)
    target_layers: int = Field(1, ge=1, le=8)
    recent_tail: int = Field(0, ge=0, le=1_024, description="newest raw events beside the summary in stage 2")
    mlp: tuple[Annotated[int, Field(ge=1)], ...] = (512, 128, 64)
    mlp_batch_norm: bool = Field(False, description="before each ReLU of the MLP; needs one worker")
    attention: AttentionName = Field("qla", description="kernel of the summariser's blocks")
    phi: Phi = Field("silu", description="of queries and keys (qla)")
    phi_out: Phi = Field("silu", description="of the state that is read (qla)")
    causal: bool = Field(False, description="events read earlier events only (qla; slow)")
    seeds_as: Literal["sources", "candidates"] = Field(
        "sources", description="seeds are read like events, or only read (qla)"
    )
    positions: bool = Field(True, description="reverse positions and time gaps of events")
    max_positions: int = Field(1_024, ge=1, description="reverse positions are clipped here")
    half_life_s: float | None = Field(
        None,
        gt=0.0,
        description="of an event's weight, by its age at the user's newest event (one layer of qla)",
    )
    task_weights: tuple[PositiveFloat, ...] = Field(
        (), description="of the tasks' losses, in their order; empty: 1 each"
    )
    reconstruction_weight: float = Field(1.0, ge=0.0)
    reconstruction_window: int = Field(1_024, ge=2)
    embedding_init: float = Field(1e-4, gt=0.0)
    id_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of ids replaced by the unseen row in training"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    use_user_id: bool = True
    use_side_features: bool = Field(True, description="categories of items and context of candidates")
    use_dense_features: bool = True

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _variants_are_of_qla(self) -> Self:
        variants = ("phi", "phi_out", "causal", "seeds_as")
        changed = [name for name in variants if getattr(self, name) != type(self).model_fields[name].default]
        if self.attention != "qla" and changed:
            raise ValueError(
                f"attention {self.attention!r} has no {' and no '.join(changed)}: leave it out, or take qla"
            )
        return self

    @model_validator(mode="after")
    def _decay_is_of_one_sum(self) -> Self:
        obstacles = differences(self, ONE_SUM)
        if self.half_life_s is not None and obstacles:
            raise ValueError(
                f"half_life_s {self.half_life_s:g}: {obstacles}; leave it out, or change the model"
            )
        return self


ONE_SUM: dict[str, object] = {"layers": 1, "attention": "qla", "causal": False, "seeds_as": "sources"}
"""Fields of a `ModelConfig` whose summaries read events through one sum over them."""


def incremental_obstacles(model: ModelConfig) -> str:
    """Why an event cannot be added to a summary of this model exactly; empty if it can.

    >>> incremental_obstacles(ModelConfig(layers=2))
    'layers is 2, not 1; positions is True, not False'
    """
    return differences(model, ONE_SUM | {"positions": False})


def differences(model: Frozen, wanted: Mapping[str, object]) -> str:
    """What a model has, not what is wanted; empty if it has all.

    >>> differences(ModelConfig(), {"layers": 2, "heads": 4})
    'layers is 1, not 2'
    """
    found = {name: getattr(model, name) for name in wanted}
    return "; ".join(
        f"{name} is {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]
    )


class TrainConfig(Frozen):
    """One training: the optimiser, its budget and how it is spread."""

    learning_rate: float = Field(1e-3, gt=0.0)
    schedule: Literal["linear", "plateau"] = Field(
        "linear", description="linear decay, or a tenth after each epoch without a better validation AUC"
    )
    final_learning_rate_fraction: float = Field(0.05, gt=0.0, le=1.0, description="linear decay down to this")
    embedding_l2: float = Field(0.0, ge=0.0)
    epochs: int = Field(1, ge=1)
    patience: int = Field(2, ge=1, description="epochs without a better validation AUC before stopping")
    max_tokens_per_batch: int = Field(
        65_536, ge=1, description="history tokens and candidates of one global batch"
    )
    max_candidates_per_batch: int = Field(1_024, ge=1)
    workers: int = Field(2, ge=1, description="Ray Train workers")
    checkpoint_every_steps: int = Field(200, ge=1)
    seed: int = 0


class DeliveryConfig(Frozen):
    """How summaries are stored and moved."""

    codec: Literal["bf16", "int8"] = "int8"
    zstd: bool = True
    epochs_kept: int = Field(3, ge=2, description="current, previous, next")
    states: bool = Field(False, description="the table also holds what an update per event needs")


Limit = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class GateConfig(Frozen):
    """When a new downstream model may replace the champion."""

    max_ne_loss: Limit = 0.001
    max_point_ne_loss: Limit = Field(0.02, description="for small data; for production 0.003")
    max_slice_ne_loss: Limit = 0.01
    min_slice_rows: int = Field(1_000, ge=0)
    max_calibration_error: Limit = 0.02
    resamples: int = Field(1_000, ge=100)


class Recipe(Frozen):
    """A whole run: data, windows, model, trainings, delivery, gate."""

    name: str
    data: DataConfig
    windows: WindowConfig = WindowConfig()
    model: ModelConfig = ModelConfig()
    foundation: TrainConfig = TrainConfig()
    downstream: TrainConfig = TrainConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    gate: GateConfig = GateConfig()
    foundation_slot: Literal["vista", "vista_hstu"] = Field(
        "vista", description="alone, or co-trained with HSTU (the paper's table 3)"
    )
    baselines: tuple[BaselineName, ...] = ("no_history", "mean_pool", "din", "lightgbm")

    @model_validator(mode="after")
    def _states_are_of_sums(self) -> Self:
        if self.delivery.states and (obstacles := incremental_obstacles(self.model)):
            raise ValueError(
                f"an event cannot be added to these summaries: {obstacles}; undo it, or take another recipe"
            )
        return self

    @model_validator(mode="after")
    def _the_tail_is_part_of_the_history(self) -> Self:
        if self.model.recent_tail > self.data.max_uih:
            raise ValueError(
                f"recent_tail {self.model.recent_tail} is more than max_uih {self.data.max_uih}: "
                "change one of them"
            )
        return self

    @model_validator(mode="after")
    def _a_weight_per_task(self) -> Self:
        if self.model.task_weights and len(self.model.task_weights) != len(self.data.tasks):
            raise ValueError(
                f"{len(self.model.task_weights)} task_weights for the tasks {', '.join(self.data.tasks)}: "
                "give one per task, or none"
            )
        return self

    @model_validator(mode="after")
    def _batch_norm_sees_whole_batches(self) -> Self:
        workers = max(self.foundation.workers, self.downstream.workers)
        if self.model.mlp_batch_norm and workers > 1:
            raise ValueError(
                f"mlp_batch_norm with {workers} workers: each would normalise by its own part of the batch; "
                "give both trainings workers=1"
            )
        return self


class RefreshConfig(Frozen):
    """A run as people start it: a recipe's name and the few scalars worth changing. Airflow's form is its
    schema."""

    recipe: str = Field(
        "generated",
        description="smoke, generated, incremental, kuairand, kuairand_cotrained, kuairand_paper, "
        "amazon_electronics, movielens, events, simplified_production, industrial",
    )
    data_dir: str = Field("", description="folder with the source's files; not needed by generated data")
    run_id: str = Field("", description="an earlier run's name resumes it; empty starts a new run")
    seed: int = Field(0, ge=0, le=2**31 - 1)  # LightGBM's limit
    seeds: int | None = Field(
        None, ge=1, le=4_096, description="summary vectors per user; empty: the recipe's"
    )
    width: int | None = Field(None, ge=8, le=4_096, description="embedding width; empty: the recipe's")
    layers: int | None = Field(None, ge=1, le=16, description="summariser layers; empty: the recipe's")
    recent_tail: int | None = Field(
        None, ge=0, le=1_024, description="newest raw events beside the summary; empty: the recipe's"
    )
    max_uih: int | None = Field(
        None, ge=1, le=1_000_000, description="newest events of a history that are read; empty: the recipe's"
    )
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="passes over the foundation's examples; empty: the recipe's"
    )
    learning_rate: float | None = Field(None, gt=0.0, le=1.0, description="foundation's; empty: the recipe's")
    workers: int | None = Field(None, ge=1, le=1_024, description="Ray Train workers; empty: the recipe's")
    codec: Literal["bf16", "int8"] | None = Field(None, description="of the records; empty: the recipe's")
    warm_start: bool = Field(
        False,
        description="go on from the newest foundation of the space that serves, in that space",
    )
    until: str = Field("", pattern=DAY, description="newest day of events to read, YYYY-MM-DD; empty: all")


class GridConfig(Frozen):
    """A grid of foundations as people start it: every combination of summary seeds, width and history length.

    Lists are comma-separated.
    """

    grid: str = Field(
        "", description="the grid's name, of letters, digits, '.', '_' and '-'; empty: that of the run"
    )
    recipe: str = Field("generated", description="whose data and trainings the cells have")
    data_dir: str = Field("", description="folder with the source's files; not needed by generated data")
    until: str = Field("", pattern=DAY, description="newest day of events to read, YYYY-MM-DD; empty: all")
    seeds: str = Field("8,16", pattern=NUMBERS, description="summary vectors per user")
    widths: str = Field("16,32", pattern=NUMBERS, description="embedding widths")
    lengths: str = Field("50,100", pattern=NUMBERS, description="newest events of a history that are read")
    repeats: int = Field(1, ge=1, le=100, description="every cell is trained with the seeds 0 .. REPEATS - 1")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="passes over the foundation's examples; empty: the recipe's"
    )
    workers: int | None = Field(None, ge=1, le=1_024, description="Ray Train workers; empty: the recipe's")

    def cells(self) -> list["GridCell"]:
        """Every combination, in the order of the lists."""
        axes = (_numbers(self.seeds), _numbers(self.widths), _numbers(self.lengths), range(self.repeats))
        shared = self.model_dump(include={"grid", "recipe", "data_dir", "until", "epochs", "workers"})
        return [
            GridCell(**shared, seeds=seeds, width=width, max_uih=length, seed=seed)
            for seeds, width, length, seed in product(*axes)
        ]


class GridCell(Frozen):
    """One training of a grid."""

    grid: str
    recipe: str
    data_dir: str
    until: str
    seeds: int
    width: int
    max_uih: int
    seed: int
    epochs: int | None = None
    workers: int | None = None

    @property
    def name(self) -> str:
        return f"seeds-{self.seeds}-width-{self.width}-length-{self.max_uih}-seed-{self.seed}"


def _numbers(text: str) -> tuple[int, ...]:
    """
    >>> _numbers("8, 16,8")
    (8, 16)
    """
    return tuple(dict.fromkeys(int(number) for number in text.split(",")))


class CheckConfig(Frozen):
    """What a check of the delivery lets pass."""

    max_age_s: float | None = Field(
        None, gt=0.0, description="of the oldest summary that serves, by the wall clock; empty: any age"
    )
    max_lag_s: float = Field(
        30.0, ge=0.0, le=600.0, description="by when a region has what the log held when the check began"
    )


class ExperimentConfig(Frozen):
    """An experiment as people start it."""

    data_dir: str = Field(
        description="folder of the data: of kuairand the source's own, of the others the one above "
        "kuairand-pure and ml-1m"
    )
    sets: str = Field(
        "",
        description="data sets, comma-separated: kuairand-pure; but for kuairand also ml-1m; or blocks of "
        "them, as 'ml-1m ids'; empty: all",
    )
    models: str = Field(
        "",
        description="models, comma-separated: vista, vista_hstu, no_history, mean_pool, ttsn, din, mha, "
        "sasrec, hstu, vista_softmax, vista_permuted; of table2 also lightgbm, and of ml-1m vista_no_tail; "
        "of ablation and tuning vista, hstu and what is changed: a wrong name lists them; empty: all",
    )
    seeds: int = Field(3, ge=1, le=1_000, description="every model is trained with so many seeds")
    first_seed: int = Field(0, ge=0, le=10**9, description="the first of the seeds; the others follow it")
    workers: int = Field(2, ge=1, description="cells at a time, each a process of one thread")
    out: str = Field("", description="folder of the results; empty: experiments/NAME below VISTA_RUNS")


class Settings(Frozen):
    """Which back ends: URLs from the environment, read once by `vista.__main__` and passed on.

    Regions are ordered, nearest first.
    """

    runs: Path
    home: Path
    catalog_url: str
    log_url: str
    region_urls: dict[str, str]
    warehouse: str
    mlflow_url: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Defaults are the embedded back ends below `VISTA_HOME` (default `var`); `VISTA_REGIONS` is
        `name=url,...`. A variable that is empty counts as not set. Raises `InputError`."""
        environment = {name: value for name, value in environment.items() if value}
        home = Path(environment.get("VISTA_HOME", "var")).absolute()
        regions = environment.get("VISTA_REGIONS")
        embedded = {name: f"sqlite:///{home}/stores/{name}.db" for name in ("east", "west")}
        return cls(
            runs=Path(environment.get("VISTA_RUNS", "runs")).absolute(),
            home=home,
            catalog_url=environment.get("VISTA_CATALOG_URL", f"sqlite:///{home}/catalog.db"),
            log_url=environment.get("VISTA_LOG_URL", f"sqlite:///{home}/log.db"),
            region_urls=_urls_by_name(regions) if regions else embedded,
            warehouse=environment.get("VISTA_WAREHOUSE", f"{home}/warehouse"),
            mlflow_url=environment.get("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db"),
        )


def _urls_by_name(regions: str) -> dict[str, str]:
    """
    >>> _urls_by_name("east=redis+cluster://a:1,b:2,west=sqlite:///x")
    {'east': 'redis+cluster://a:1,b:2', 'west': 'sqlite:///x'}
    """
    urls: dict[str, str] = {}
    for part in re.split(r",(?![^,=/?]+:\d+(?:[,/?]|$))", regions):  # a comma before host:port is the URL's
        name, _, url = part.strip().partition("=")
        if not (name and url) or name in urls:
            shown = name if re.fullmatch(r"[\w.-]*", name) else "..."  # what is no name may be a password
            raise InputError(
                f"VISTA_REGIONS holds {shown + '=...'!r} as its part {len(urls) + 1}: write it as "
                "name=url,name=url, each name once"
            )
        urls[name] = url
    return urls
