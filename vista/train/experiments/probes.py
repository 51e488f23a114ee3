"""What a trained VISTA's test AUC owes to the summary: it is removed, and it is stored as int8.

Shape suffixes: B users, S seeds, D width, N test rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vista.config import Frozen
from vista.data.batches import BatchPlan
from vista.data.schema import Batch
from vista.evaluate.metrics import auc
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.model.ranker import Ranker, RankerOutput
from vista.summary.codec import dequantise, quantise
from vista.summary.record import Codec
from vista.train.loop import Forward, predict


class Probes(Frozen):
    """Test AUC with every user's summary replaced: by zeros, and by what a store would give back."""

    removed_auc: float
    int8_auc: float


def probe(ranker: Ranker, plan: BatchPlan, ids_N: NDArray[np.int64]) -> Probes:
    """`plan` holds the test rows, `ids_N` their candidate ids; `ranker` has slot "vista"."""
    labels_CT = plan.examples.candidates.labels_CT

    def area(change: Callable[[Tensor], Tensor]) -> float:
        scores_C = predict(ranker, through_summary(ranker, change), plan, len(labels_CT))
        return auc(labels_CT[ids_N, 0], scores_C[ids_N])

    return Probes(removed_auc=area(torch.zeros_like), int8_auc=area(as_stored))


def as_stored(summary_BSD: Tensor) -> Tensor:
    """The summaries after a round trip through the int8 codec."""
    payload_BP = quantise(summary_BSD.numpy(), Codec.INT8)
    return torch.from_numpy(dequantise(payload_BP, Codec.INT8, *summary_BSD.shape[1:]))


def through_summary(ranker: Ranker, change: Callable[[Tensor], Tensor]) -> Forward:
    """The ranker as two models, as in production: its summaries, changed, are all that stage 2 reads."""
    downstream = Downstream.from_foundation(ranker).eval()

    def forward(batch: Batch) -> RankerOutput:
        on_cpu = tensors(batch, "cpu")
        output: RankerOutput = downstream(on_cpu, change(ranker.summarise(on_cpu)))
        return output

    return forward
