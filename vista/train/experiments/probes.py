"""What a trained VISTA owes to the summary: it is removed, stored as int8, and taken from another user.

Shape suffixes: B users of a batch, who may be there several times, U different ones, S seeds, D width,
L history rows, N test rows.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vista.config import Frozen
from vista.data.batches import BatchPlan, batches
from vista.data.schema import Batch
from vista.evaluate.metrics import auc
from vista.model.downstream import Downstream
from vista.model.inputs import device_of, tensors
from vista.model.ranker import Ranker, RankerOutput, VistaHistory
from vista.summary.codec import dequantise, quantise
from vista.summary.record import Codec
from vista.train.loop import Forward, predict


class Probes(Frozen):
    """Test AUC with every user's summary replaced: by zeros, and by what a store would give back.
    `swapped_error` is by what share another user's summary raises the reconstruction error; None where
    nothing is reconstructed."""

    removed_auc: float
    int8_auc: float
    swapped_error: float | None = None


def probe(ranker: Ranker, plan: BatchPlan, ids_N: NDArray[np.int64]) -> Probes:
    """`plan` holds the test rows, `ids_N` their candidate ids; `ranker` has slot "vista"."""
    labels_CT = plan.examples.candidates.labels_CT

    def area(change: Callable[[Tensor], Tensor]) -> float:
        scores_C = predict(ranker, through_summary(ranker, change), plan, len(labels_CT))[:, 0]
        return auc(labels_CT[ids_N, 0], scores_C[ids_N])

    return Probes(
        removed_auc=area(torch.zeros_like),
        int8_auc=area(as_stored),
        swapped_error=swapped_error(ranker, plan) if ranker.config.reconstruction_weight else None,
    )


def swapped_error(ranker: Ranker, plan: BatchPlan) -> float:
    """By what share of the error with the own summary another user's raises it, over the batches of several
    users (section 3.2.3)."""
    history = ranker.eval().history
    assert isinstance(history, VistaHistory), f"slot {ranker.slot!r} has no summaries"
    assert history.reconstruction is not None, "reconstruction_weight is 0"
    own = another = 0.0
    with torch.inference_mode():
        for batch in batches(plan):
            _, row_U, user_B = np.unique(batch.user_id_B, return_index=True, return_inverse=True)
            if len(row_U) > 1:
                uih = ranker.uih(tensors(batch, device_of(ranker)))
                ordered_LD = history.summariser.order(uih)
                summary_BSD = history.summariser.summarise(ordered_LD, uih)
                other_B = torch.from_numpy(np.roll(row_U, 1)[user_B])
                own += float(history.reconstruction(summary_BSD, ordered_LD, uih))
                another += float(history.reconstruction(summary_BSD[other_B], ordered_LD, uih))
    return another / own - 1.0


def as_stored(summary_BSD: Tensor) -> Tensor:
    """The summaries after a round trip through the int8 codec."""
    payload_BP = quantise(summary_BSD.cpu().numpy(), Codec.INT8)
    stored_BSD = torch.from_numpy(dequantise(payload_BP, Codec.INT8, *summary_BSD.shape[1:]))
    return stored_BSD.to(summary_BSD.device)


def through_summary(ranker: Ranker, change: Callable[[Tensor], Tensor]) -> Forward:
    """The ranker as two models, as in production: its summaries, changed, are all that stage 2 reads."""
    downstream = Downstream.from_foundation(ranker).eval()

    def forward(batch: Batch) -> RankerOutput:
        there = tensors(batch, device_of(ranker))
        output: RankerOutput = downstream(there, change(ranker.summarise(there)))
        return output

    return forward
