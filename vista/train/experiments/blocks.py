"""What a cell is made of: a block, which is one data set with one kind of inputs, so that its arms are
measured on the same rows, and an arm, which is one model with its own configuration."""

from typing import Literal

from vista.config import DataConfig, Frozen, ModelConfig, TrainConfig
from vista.model.ranker import SlotName

Inputs = Literal["ids", "features"]


class DateSplit(Frozen):
    """By the dates (YYYYMMDD) under which the source's files list the rows."""

    valid_from: int
    test_from: int


class UserSplit(Frozen):
    """By each user's own order: of n rows the last ceil(n / parts) test, as many before them validate."""

    parts: int


class Arm(Frozen):
    """One model of a block.

    `permuted_labels`: trained and tested on noise, so that another AUC than .50 is a leak through the rows,
    their order or the evaluation. Histories and features are made of the true labels and may leak unseen.
    """

    name: str
    kind: SlotName | Literal["lightgbm"]
    model: ModelConfig
    train: TrainConfig
    permuted_labels: bool = False

    @property
    def probed(self) -> bool:
        """What its AUC owes to the summary is measured: it has one, and has learned something."""
        return self.kind == "vista" and not self.permuted_labels


class Block(Frozen):
    """One data set with one kind of inputs; `data_set` is the name of its folder."""

    data_set: str
    inputs: Inputs
    data: DataConfig
    split: DateSplit | UserSplit
    arms: tuple[Arm, ...]

    @property
    def name(self) -> str:
        return f"{self.data_set} {self.inputs}"
