"""What storing summaries in fewer bits costs: a trained model scored from exact and from stored ones."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vista.config import GeneratedConfig, WindowConfig
from vista.data.batches import batches
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.evaluate.metrics import auc
from vista.model.downstream import Downstream
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.recipes import generated
from vista.summary.codec import dequantise, quantise
from vista.summary.record import Codec
from vista.train.jobs import RankerJob, Training, training_days
from vista.train.loop import fit

Stored = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def through(codec: Codec) -> Stored:
    def stored(summary_BSD: NDArray[np.float32]) -> NDArray[np.float32]:
        return dequantise(quantise(summary_BSD, codec), codec, *summary_BSD.shape[1:])

    return stored


def exact(summary_BSD: NDArray[np.float32]) -> NDArray[np.float32]:
    return summary_BSD


def fp16(summary_BSD: NDArray[np.float32]) -> NDArray[np.float32]:
    return summary_BSD.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The foundation of the generated recipe on a smaller data set, with 4,800 rows on the test day."""
    torch.set_num_threads(1)
    recipe, path = generated(""), tmp_path_factory.mktemp("data") / "generated"
    size = GeneratedConfig(users=600, events_per_user=60, days=6)
    data = recipe.data.model_copy(update={"generated": size, "buckets": 2})
    prepare_dataset(data, path, WindowConfig())
    windows = Dataset.open(path).split()
    job = RankerJob(
        dataset=path,
        slot="vista",
        model=recipe.model,
        train=recipe.foundation.model_copy(update={"epochs": 5}),
        max_uih=data.max_uih,
        days=training_days(windows.first_day, windows.n, 1),
    )
    training = Training(job)
    fit(training.task())
    return training


def auc_of(trained: Training, stored: Stored) -> float:
    """On the test day, from summaries as they come back from their store."""
    n, foundation = trained.dataset.split().n, trained.model.eval()
    assert isinstance(foundation, Ranker)
    downstream = Downstream.from_foundation(foundation).eval()
    scores_N = np.full(trained.dataset.info.candidates, np.nan, np.float32)
    with torch.inference_mode():
        for batch in batches(trained.plan(trained.dataset.examples(n, n + 1))):
            tensor_batch = tensors(batch, "cpu")
            summary_BSD = torch.from_numpy(stored(foundation.summarise(tensor_batch).numpy()))
            logits_C = downstream(tensor_batch, summary_BSD).logits_CT[:, 0]
            scores_N[batch.candidate_id_C] = logits_C.sigmoid()
    rows = np.flatnonzero(~np.isnan(scores_N))
    return auc(trained.labels_N()[rows], scores_N[rows])


@pytest.mark.parametrize(
    ("stored", "most"),
    [(through(Codec.INT8), 5e-4), (fp16, 1e-5), (through(Codec.BF16), 5e-4)],
    ids=["int8", "fp16", "bf16"],
)
def test_stored_summaries_rank_as_exact_ones(trained: Training, stored: Stored, most: float) -> None:
    """What each may cost: int8 5e-4 of AUC, fp16 1e-5. The codec is bf16: its error is below int8's, whose
    limit it has here."""
    best = auc_of(trained, exact)
    assert best > 0.8, "a model that has learned nothing loses nothing"
    assert abs(auc_of(trained, stored) - best) <= most


def test_the_summary_matters_to_the_model(trained: Training) -> None:
    """So that the limits above say something."""
    assert auc_of(trained, np.zeros_like) < 0.6
