"""What a training resumes from: `state.safetensors` (weights, best weights, Adam's moments) and
`progress.json` (position, best epoch, curve, and the other's checksum). Nothing is pickled."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vista.config import Frozen
from vista.data.files import check_unchanged, checksum
from vista.runs import read_sealed, reading, write_sealed
from vista.train.adam import FlatAdam

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"


class Point(Frozen):
    """The metrics of one step; steps count from 1 over all epochs."""

    step: int
    values: dict[str, float]


class Progress(Frozen):
    """Where a training is: `step` steps of `epoch` are done, `global_step` in all."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best_epoch: int | None = None
    best_auc: float | None = None
    stalls: int = 0  # epochs without a better validation AUC
    done: bool = False
    curve: tuple[Point, ...] = ()


class ProgressFile(Frozen):
    """progress.json; `checksum` is that of state.safetensors."""

    checksum: str
    progress: Progress


def save_state(
    directory: Path,
    progress: Progress,
    model: nn.Module,
    best: dict[str, Tensor],
    optimiser: FlatAdam,
) -> None:
    """Write a state into `directory`."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"adam/{name}": moment for name, moment in optimiser.moments().items()}
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / STATE_FILE
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, state)
    kept = ProgressFile(checksum=checksum(state), progress=progress)
    write_sealed(directory / PROGRESS_FILE, kept.model_dump(mode="json"))


def load_state(directory: Path, model: nn.Module, optimiser: FlatAdam) -> tuple[Progress, dict[str, Tensor]]:
    """Put a state back; returns the progress and the best weights so far. Raises `StageError` for one that
    is damaged or not of this model."""
    progress, tensors = read_state(directory)
    with reading(directory / STATE_FILE, _begin_anew(directory), KeyError, RuntimeError):
        model.load_state_dict(_below("model/", tensors))
        optimiser.restore(_below("adam/", tensors))
    return progress, _below("best/", tensors)


def load_best(directory: Path, model: nn.Module) -> Progress:
    """Put the best weights of a finished training into `model`. Raises `StageError` as `load_state` does."""
    progress, tensors = read_state(directory)
    with reading(directory / STATE_FILE, _begin_anew(directory), RuntimeError):
        model.load_state_dict(_below("best/", tensors))
    return progress


def read_state(directory: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Both files of a state. Raises `StageError` if one is missing or damaged."""
    state, remedy = directory / STATE_FILE, _begin_anew(directory)
    kept = read_sealed(ProgressFile, directory / PROGRESS_FILE, remedy)
    check_unchanged(state, kept.checksum, remedy)
    return kept.progress, load_file(state)


def _begin_anew(directory: Path) -> str:
    return (
        f"delete {directory.parent} and run the stage again (`make run RESUME=1`): the training begins anew, "
        "to the same weights"
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
