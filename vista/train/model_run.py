"""What the MLflow run of a trained model keeps beside its metrics: its scores of the test rows, pictures."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vista.errors import BackendError
from vista.evaluate import figures
from vista.evaluate.bootstrap import PairedDifference
from vista.evaluate.metrics import Metrics, calibration_bins
from vista.evaluate.refresh_report import TrainingCurve
from vista.evaluate.scored_rows import ScoredRows
from vista.train.mlflow_store import client, mapped
from vista.train.tracking import Tracked

SCORES_FILE = "scores.parquet"
ROWS = "vista.rows"
"""Tag of a run that keeps its scores: the digest of their rows."""


def of_test_rows(metrics: Metrics, other_auc: Mapping[str, float], suffix: str = "") -> dict[str, float]:
    """Metrics, and AUC of the tasks after the first, by their names in MLflow.

    >>> one = Metrics(auc=0.7, ne=0.9, log_loss=0.5, gauc=None, calibration=1, ece=0, rows=9)
    >>> list(of_test_rows(one, {"like": 0.8}, "/din"))[::3]
    ['test_auc/din', 'test_calibration/din', 'test_auc_like/din']
    """
    values = {name: getattr(metrics, name) for name in Metrics.model_fields}
    values |= {f"auc_{task}": area for task, area in other_auc.items()}
    return {f"test_{name}{suffix}": value for name, value in values.items() if value is not None}


@mapped
def keep_scores(tracked: Tracked, rows: ScoredRows) -> None:
    """Keep the rows with the run, and tag it with their digest."""
    with tempfile.TemporaryDirectory() as folder:
        path = rows.write(Path(folder) / SCORES_FILE)
        client(tracked.url).log_artifact(tracked.run_id, str(path))
    tracked.tag({ROWS: rows.digest})


@mapped
def kept_scores(url: str, run_id: str, digest: str) -> ScoredRows:
    """What `keep_scores` kept. Raises `BackendError` if it is not there any more, or is not of its rows."""
    remedy = "delete the run, or make it again"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(client(url).download_artifacts(run_id, SCORES_FILE, folder))
        rows = ScoredRows.read(path, f"run {run_id}: {remedy}")
    if rows.digest != digest:
        raise BackendError(
            f"MLflow's run {run_id}: {SCORES_FILE} is of rows {rows.digest}, not {digest}: {remedy}"
        )
    return rows


def pictures(
    curves: Sequence[TrainingCurve],
    scored: Mapping[str, ScoredRows],
    paired: Mapping[str, PairedDifference] | None = None,
) -> dict[str, str]:
    """SVG files by their place in the run: how the models learned, how calibrated they are, how far apart."""
    bins = {name: calibration_bins(rows.labels_N, rows.scores_N) for name, rows in scored.items()}
    drawn = {
        "training-curves": figures.training_curves(curves),
        "calibration": figures.calibration(bins),
        "paired-differences": figures.paired_differences(paired) if paired else "",
    }
    return {f"figures/{name}.svg": figures.as_file(svg) for name, svg in drawn.items() if svg}
