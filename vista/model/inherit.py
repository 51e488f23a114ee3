"""The weights of an earlier model for one that knows more ids: what a warm start begins with."""

import torch
from torch import Tensor

from vista.config import Frozen
from vista.data.schema import UNSEEN_ROW
from vista.errors import InputError
from vista.model.embeddings import IdTable
from vista.model.ranker import Ranker

FREE = ("embedding_init", "id_dropout", "dropout")
"""Fields of `ModelConfig` that say how a model is trained, not what its numbers mean."""

GROWING = ("num_items", "num_users", "num_categories")
"""Fields of `FeatureSpec` that count rows of tables: dictionaries are only appended to."""


def inherit(model: Ranker, earlier: Ranker) -> None:
    """Give `model` the weights of `earlier`; rows that its id tables have more begin as the unseen row.

    Raises `InputError` that names what differs, if the two do not belong to one space.
    """
    if found := differences(model, earlier):
        raise InputError(
            f"warm_start: {'; '.join(found)}: that is another space; undo it, or run without warm_start"
        )
    tables = {f"{name}.table.weight" for name, module in model.named_modules() if isinstance(module, IdTable)}
    kept = earlier.state_dict()
    with torch.no_grad():
        for name, weights in model.state_dict().items():
            weights.copy_(_grown(kept[name], len(weights)) if name in tables else kept[name])


def differences(model: Ranker, earlier: Ranker) -> list[str]:
    """Why the weights of `earlier` mean nothing to `model`; empty if they do."""
    found = [] if model.slot == earlier.slot else [f"slot was {earlier.slot!r} and is {model.slot!r}"]
    found += changed(earlier.config, model.config, FREE) + changed(earlier.spec, model.spec, GROWING)
    for name in GROWING:
        before, now = getattr(earlier.spec, name), getattr(model.spec, name)
        if now < before:
            found.append(f"{name} was {before:,} and is {now:,}")
    return found


def changed(before: Frozen, now: Frozen, free: tuple[str, ...]) -> list[str]:
    """The fields that are not equal, but for the `free` ones."""
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in type(now).model_fields}
    return [
        f"{name} was {theirs} and is {ours}"
        for name, (theirs, ours) in pairs.items()
        if theirs != ours and name not in free
    ]


def _grown(weights_RD: Tensor, rows: int) -> Tensor:
    unseen = weights_RD[UNSEEN_ROW].expand(rows - len(weights_RD), -1)
    return torch.cat([weights_RD, unseen])
