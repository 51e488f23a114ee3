"""What the rows of a checkpoint's tables mean; it lies beside the weights.

A data set that has grown since keeps the meaning, because its dictionaries are only appended to. One from
which ids have gone, or in which they have other rows, does not; nor does one with other value buckets.
"""

import hashlib
from pathlib import Path

from vista.config import Frozen
from vista.data.dataset import Dataset
from vista.data.dictionary import Dictionary
from vista.data.schema import FeatureSpec
from vista.errors import CheckpointError
from vista.runs import read_as, write_whole

VOCABULARY_FILE = "vocabulary.json"


class Vocabulary(Frozen):
    """Digests of the ids that a model knows, in the order of their rows, and the edges of value buckets."""

    items: str
    users: str
    categories: str
    value_edges: tuple[float, ...]

    @classmethod
    def of(cls, dataset: Dataset, spec: FeatureSpec) -> "Vocabulary":
        """What `dataset` says of the rows that a model of `spec` has."""
        return cls(
            items=_digest(dataset, "item", dataset.items, spec.num_items),
            users=_digest(dataset, "user", dataset.users, spec.num_users),
            categories=_digest(dataset, "category", dataset.categories, spec.num_categories),
            value_edges=dataset.file.value_edges,
        )

    @classmethod
    def read(cls, checkpoint: Path) -> "Vocabulary":
        """What lies beside a checkpoint. Raises `CheckpointError` if it cannot be read."""
        remedy = "restore the checkpoint, or train the model in a new run"
        return read_as(cls, checkpoint / VOCABULARY_FILE, remedy, raising=CheckpointError)

    def write(self, checkpoint: Path) -> None:
        write_whole(checkpoint / VOCABULARY_FILE, self.model_dump_json(indent=2))

    def differences(self, other: "Vocabulary") -> list[str]:
        """The parts that are not equal."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]


def _digest(dataset: Dataset, name: str, dictionary: Dictionary, rows: int) -> str:
    """SHA-256 of the ids of the rows 1 .. rows - 1. Text ids are numbers there: their texts count too."""
    ids = dictionary.id_R[: rows - 1]
    digest = hashlib.sha256(ids.astype("<i8").tobytes())
    texts = dataset.texts(name)
    if texts is not None:
        digest.update("\n".join(map(repr, texts.gather(ids))).encode())
    return digest.hexdigest()
