"""The experiments as values: which data, which rows, which models, each with its whole recipe.

An experiment is a function of a data folder. Its cells are all (block, arm, seed); a cell is what is trained,
kept and compared.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from vista.config import DataConfig, ExperimentConfig, Frozen, ModelConfig, TrainConfig
from vista.errors import InputError
from vista.model.ranker import SlotName
from vista.recipes import KUAIRAND_TASKS
from vista.train.experiments.blocks import Arm, Block, DateSplit, Inputs, UserSplit

SLOTS: tuple[SlotName, ...] = get_args(SlotName)

REFERENCE = "vista"
"""The arm that the others of its block are compared with."""


Change = Mapping[str, Any]
"""Fields of a `ModelConfig` or a `TrainConfig`."""


class Experiment(Frozen):
    """What `python -m vista experiment NAME` trains."""

    name: str
    blocks: tuple[Block, ...]


def kuairand(data_dir: Path) -> Experiment:
    """KuaiRand-Pure's public split, ids only; `data_dir` is its own folder."""
    return Experiment(name="kuairand", blocks=(_kuairand(data_dir, "ids"),))


def table2(data_dir: Path) -> Experiment:
    """The paper's table 2 on public splits: every slot on ids, and the strongest with all features."""
    videos, movies = data_dir / "kuairand-pure", data_dir / "ml-1m"
    return Experiment(
        name="table2",
        blocks=(
            _kuairand(videos, "ids"),
            _kuairand(videos, "features"),
            _ml_1m(movies, "ids"),
            _ml_1m(movies, "features"),
        ),
    )


def ablation(data_dir: Path) -> Experiment:
    """What VISTA's parts contribute (the paper's table 3): each arm lacks one, or has another in its place.
    Ids only, one pass."""
    return Experiment(name="ablation", blocks=_one_change(data_dir, PARTS, extra="hstu"))


def tuning(data_dir: Path) -> Experiment:
    """VISTA with one hyper-parameter changed, to be judged by validation AUC. One pass."""
    videos = _kuairand(data_dir / "kuairand-pure", "features")
    (vista,) = (arm for arm in videos.arms if arm.name == REFERENCE)
    return Experiment(
        name="tuning",
        blocks=(
            *_one_change(data_dir, HYPER_PARAMETERS),
            videos.model_copy(update={"arms": (vista, *_changed(vista, TASK_WEIGHTS))}),
        ),
    )


EXPERIMENTS: dict[str, Callable[[Path], Experiment]] = {
    experiment.__name__: experiment for experiment in (kuairand, table2, ablation, tuning)
}

INPUTS: dict[Inputs, ModelConfig] = {
    "ids": ModelConfig(
        seeds=16, use_side_features=False, use_dense_features=False, reconstruction_weight=0.0
    ),
    "features": ModelConfig(seeds=16, reconstruction_weight=0.0),
}

KUAIRAND_TRAIN = TrainConfig(max_candidates_per_batch=512, workers=1)
"""One pass with a rate that decays from 1e-3 to 5%, because ids overfit: 7 training rows a user."""

ML_1M_TRAIN = TrainConfig(max_candidates_per_batch=512, workers=1, epochs=3, embedding_l2=1e-4)
"""131 training rows a user: more passes, and embeddings held down."""

ML_1M_TAIL = 16
"""Events beside the summary: what a user rates next depends on what he has rated just before."""

ML_1M_RECONSTRUCTION: Change = {"reconstruction_weight": 0.01, "reconstruction_window": 16}
"""A weight of .03 and longer windows, which cost, gain as much; .003 and .1 gain less. On KuaiRand-Pure it
gains nothing (EXPERIMENTS.md)."""

WITH_FEATURES: tuple[SlotName, ...] = ("vista", "din", "hstu")

PARTS: dict[str, Change] = {
    "linear": {"attention": "linear"},
    "softmax": {"attention": "softmax"},
    "silu": {"attention": "silu"},
    "causal": {"causal": True},
    "no_phi_out": {"phi_out": "identity"},
    "no_positions": {"positions": False},
    "seeds_as_candidates": {"seeds_as": "candidates"},
    "reconstruction": {"reconstruction_weight": 0.1},
    "no_reconstruction": {"reconstruction_weight": 0.0},
    "width_16": {"width": 16},
    "width_64": {"width": 64},
    "seeds_4": {"seeds": 4},
    "seeds_64": {"seeds": 64},
}

HYPER_PARAMETERS: dict[str, Change] = {
    "embedding_init_1e-3": {"embedding_init": 1e-3},
    "embedding_init_1e-2": {"embedding_init": 1e-2},
    "id_dropout_.05": {"id_dropout": 0.05},
    "id_dropout_.2": {"id_dropout": 0.2},
    "dropout_.1": {"dropout": 0.1},
    "embedding_l2_0": {"embedding_l2": 0.0},
    "embedding_l2_1e-5": {"embedding_l2": 1e-5},
    "embedding_l2_1e-4": {"embedding_l2": 1e-4},
    "embedding_l2_1e-3": {"embedding_l2": 1e-3},
    "learning_rate_5e-4": {"learning_rate": 5e-4},
    "learning_rate_2e-3": {"learning_rate": 2e-3},
    "heads_2": {"heads": 2},
    "heads_8": {"heads": 8},
    "layers_2": {"layers": 2},
    "target_layers_2": {"target_layers": 2},
    "seeds_8": {"seeds": 8},
    "seeds_32": {"seeds": 32},
    "reconstruction_0": {"reconstruction_weight": 0.0, "reconstruction_window": 1_024},
    "reconstruction_.003": {"reconstruction_weight": 0.003, "reconstruction_window": 1_024},
    "reconstruction_.01": {"reconstruction_weight": 0.01, "reconstruction_window": 1_024},
    "reconstruction_.01_of_16": {"reconstruction_weight": 0.01, "reconstruction_window": 16},
    "reconstruction_.01_of_32": {"reconstruction_weight": 0.01, "reconstruction_window": 32},
    "reconstruction_.03": {"reconstruction_weight": 0.03, "reconstruction_window": 1_024},
    "reconstruction_.1": {"reconstruction_weight": 0.1, "reconstruction_window": 1_024},
}

TASK_WEIGHTS: dict[str, Change] = {
    "weights_1_.05_.05": {"task_weights": (1.0, 0.05, 0.05)},
    "weights_1_.5_.5": {"task_weights": (1.0, 0.5, 0.5)},
    "weights_1_1_1": {"task_weights": (1.0, 1.0, 1.0)},
}


def _kuairand(data_dir: Path, inputs: Inputs) -> Block:
    """With features every model learns three tasks, as in production; the first one is measured.

    Impressions of one millisecond are one session: each sees what was earlier, as in the public split, and
    not what came of the others.
    """
    tasks = {"is_click": 1.0} if inputs == "ids" else KUAIRAND_TASKS
    model = INPUTS[inputs].model_copy(update={"task_weights": tuple(tasks.values())})
    return Block(
        data_set="kuairand-pure",
        inputs=inputs,
        data=DataConfig(
            source="kuairand",
            path=str(data_dir),
            day_offset_s=8 * 3_600,
            history_cut="session",
            session_gap_s=0,
            max_uih=200,
            tasks=tuple(tasks),
        ),
        split=DateSplit(valid_from=20220506, test_from=20220507),
        arms=_arms(inputs, model, KUAIRAND_TRAIN),
    )


def _ml_1m(data_dir: Path, inputs: Inputs) -> Block:
    return Block(
        data_set="ml-1m",
        inputs=inputs,
        data=DataConfig(
            source="movielens", path=str(data_dir), clock="user_fraction", history_cut="event", max_uih=100
        ),
        split=UserSplit(parts=10),
        arms=_with_tail(
            _arms(inputs, INPUTS[inputs].model_copy(update=ML_1M_RECONSTRUCTION), ML_1M_TRAIN), ML_1M_TAIL
        ),
    )


def _arms(inputs: Inputs, model: ModelConfig, train: TrainConfig) -> tuple[Arm, ...]:
    """On ids every slot, and VISTA without QLA and on permuted labels; with features the strongest, and
    LightGBM."""
    slots = SLOTS if inputs == "ids" else WITH_FEATURES
    arms = [Arm(name=slot, kind=slot, model=model, train=train) for slot in slots]
    if inputs == "features":
        return (*arms, Arm(name="lightgbm", kind="lightgbm", model=model, train=train))
    (vista,) = (arm for arm in arms if arm.name == REFERENCE)
    (softmax,) = _changed(vista, {"vista_softmax": PARTS["softmax"]})
    return (*arms, softmax, vista.model_copy(update={"name": "vista_permuted", "permuted_labels": True}))


def _one_change(data_dir: Path, changes: Mapping[str, Change], extra: str = "") -> tuple[Block, ...]:
    """VISTA as `table2` has it on ids, but in one pass, every change of it, and the arm called `extra`."""
    blocks = []
    for block in (_kuairand(data_dir / "kuairand-pure", "ids"), _ml_1m(data_dir / "ml-1m", "ids")):
        kept = [
            arm.model_copy(update={"train": arm.train.model_copy(update={"epochs": 1})})
            for arm in block.arms
            if arm.name in (REFERENCE, extra)
        ]
        (vista,) = (arm for arm in kept if arm.name == REFERENCE)
        blocks.append(block.model_copy(update={"arms": (*kept, *_changed(vista, changes))}))
    return tuple(blocks)


def _changed(arm: Arm, changes: Mapping[str, Change]) -> list[Arm]:
    """The arm with each of the changes, but for those that change nothing."""
    found = []
    for name, change in changes.items():
        model = ModelConfig.model_validate(arm.model.model_dump() | _fields_of(ModelConfig, change))
        train = TrainConfig.model_validate(arm.train.model_dump() | _fields_of(TrainConfig, change))
        if (model, train) != (arm.model, arm.train):
            found.append(arm.model_copy(update={"name": name, "model": model, "train": train}))
    return found


def _fields_of(kind: type[Frozen], change: Change) -> dict[str, Any]:
    return {name: value for name, value in change.items() if name in kind.model_fields}


def _with_tail(arms: tuple[Arm, ...], recent_tail: int) -> tuple[Arm, ...]:
    """Every VISTA with a recent tail, and beside them `vista_no_tail`, which is `vista` as it was."""
    (plain,) = (arm for arm in arms if arm.name == REFERENCE)

    def tailed(arm: Arm) -> Arm:
        model = arm.model.model_copy(update={"recent_tail": recent_tail})
        return arm.model_copy(update={"model": model})

    return (
        *(tailed(arm) if "vista" in arm.kind else arm for arm in arms),
        plain.model_copy(update={"name": "vista_no_tail"}),
    )


def experiment_of(name: str, config: ExperimentConfig) -> Experiment:
    """The experiment called `name`, with the data sets (`ml-1m`, or one block of it: `ml-1m ids`) and arms
    that `config` asks for.

    Raises `InputError` for a name that does not exist, or if nothing is left.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r} does not exist: choose one of {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name](Path(config.data_dir).absolute())
    known_sets = tuple(
        dict.fromkeys(part for block in experiment.blocks for part in (block.data_set, block.name))
    )
    known_arms = tuple(dict.fromkeys(arm.name for block in experiment.blocks for arm in block.arms))
    sets = _chosen("data set", config.sets, known_sets)
    models = _chosen("model", config.models, known_arms)
    blocks = []
    for block in experiment.blocks:
        arms = tuple(arm for arm in block.arms if arm.name in models)
        if (block.data_set in sets or block.name in sets) and arms:
            blocks.append(block.model_copy(update={"arms": arms}))
    if not blocks:
        raise InputError(f"{name} has no models {config.models} on {config.sets}: choose others")
    return experiment.model_copy(update={"blocks": tuple(blocks)})


def check_folders(experiment: Experiment, data_dir: str) -> None:
    """Before the first of the data sets is read. Raises `InputError` if one is not there."""
    for block in experiment.blocks:
        folder = Path(block.data.path)
        if folder.exists():
            continue
        if folder == Path(data_dir).absolute():
            remedy = f"give the folder of {block.data_set}'s own files"
        else:
            names = dict.fromkeys(f"{one.data_set}/" for one in experiment.blocks)
            remedy = f"of {experiment.name} give the folder above, which holds {' and '.join(names)}"
        raise InputError(f"--data-dir {data_dir!r}: {folder} does not exist: {remedy}")


def _chosen(what: str, listed: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a comma-separated list; all known ones if it is empty."""
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise InputError(f"{what} {name!r} does not exist: choose from {', '.join(known)}")
    return names or known
