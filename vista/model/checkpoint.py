"""A trained model on disk: model.safetensors beside model.json. Nothing is unpickled.

The two files are written whole, the weights first; `digest` is the sha256 of model.safetensors, and
model.json is sealed.
"""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from vista.config import Frozen, ModelConfig
from vista.data.schema import FeatureSpec
from vista.errors import CheckpointError
from vista.model.downstream import Downstream
from vista.model.ranker import Ranker, SlotName
from vista.runs import read_sealed, write_sealed

META_FILE = "model.json"


class CheckpointMeta(Frozen):
    """What a checkpoint is: enough to rebuild the model, and to know what it may be used for.

    `space` names the embedding space of its summaries; `trained_until_us` is the end of its training data.
    """

    kind: SlotName | Literal["downstream"]
    config: ModelConfig
    spec: FeatureSpec
    space: str
    trained_until_us: int
    max_uih: int
    digest: str = ""  # of the weights; `save` fills it in


Model = Ranker | Downstream


def save(directory: Path, model: Model, meta: CheckpointMeta) -> CheckpointMeta:
    """Write `model` and `meta` into `directory`; returns `meta` with the digest of the weights."""
    weights = save_weights({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()})
    kept = meta.model_copy(update={"digest": hashlib.sha256(weights).hexdigest()})
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / ".model.safetensors"
    unfinished.write_bytes(weights)
    unfinished.replace(directory / "model.safetensors")
    write_sealed(directory / META_FILE, kept.model_dump(mode="json"))
    return kept


def load(directory: Path) -> tuple[Model, CheckpointMeta]:
    """The model, on the CPU and in eval mode, and its meta.

    Raises `CheckpointError` if a file is missing, or if the weights are not those that were saved.
    """
    meta = load_meta(directory)
    try:
        weights = (directory / "model.safetensors").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{directory} is not a checkpoint: {error}") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != meta.digest:
        raise CheckpointError(
            f"{directory}/model.safetensors has sha256 {digest}, model.json says {meta.digest}: "
            "the file was changed or is incomplete; restore it or train again"
        )
    # not on the meta device: its random numbers import torch._dynamo, 4 s of CPU
    with torch.random.fork_rng(devices=[]):
        model = _build(meta)
    try:
        model.load_state_dict(load_weights(weights))
    except RuntimeError as error:
        raise CheckpointError(f"{directory}: model.json does not fit the weights: {error}") from error
    return model.eval(), meta


def load_meta(directory: Path) -> CheckpointMeta:
    """What a checkpoint is, without its weights. Raises `CheckpointError` as `load` does."""
    remedy = "restore it, or start a new run"
    return read_sealed(CheckpointMeta, directory / META_FILE, remedy, raising=CheckpointError)


def _build(meta: CheckpointMeta) -> Model:
    if meta.kind == "downstream":
        return Downstream(meta.config, meta.spec)
    return Ranker(meta.config, meta.spec, meta.kind)
