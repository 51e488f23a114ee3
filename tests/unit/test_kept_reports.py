"""A retraining's kept report counts while what its models were judged against serves: else they are compared
again, and not trained again."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from delivery_samples import keep_report
from training_data import epoch_times, foundation_in_place, opened, published

from vista.config import RefreshConfig, Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Release
from vista.evaluate.refresh_report import TrainedOn
from vista.jobs import run_stage
from vista.model.checkpoint import load_meta, save
from vista.train.jobs import Training
from vista.train.retrain_downstream import REFERENCE, downstream_job, model_results
from vista.train.stage import Fitted, StageContext
from vista.train.vocabulary import Vocabulary

CONFIG = RefreshConfig(recipe="smoke", run_id="waiting")


@pytest.fixture(scope="module")
def stage(settings: Settings) -> StageContext:
    """A delivered run whose models are all there, the downstream one as it was initialised."""
    torch.set_num_threads(1)
    stage = foundation_in_place(CONFIG, settings)
    space = stage.run.report_of("train_foundation")["space"]
    epochs = [published(stage, opened(stage, as_of_us, space)) for as_of_us in epoch_times(stage)]
    one = {"epoch": epochs[-1].epoch, "location": epochs[-1].location}
    keep_report(stage.run, "export_summaries", {"space": space, "epochs": [one]})
    delivered = {"space": space, "epoch": one["epoch"], "delivered": True, "canaries_equal": True}
    keep_report(stage.run, "deliver", delivered | {"regions": {}})
    job = downstream_job(stage)
    training = Training(job)
    scores = training.tested(stage.dataset.split().n)[0]
    meta = load_meta(job.foundation)
    for name, result in model_results(stage).items():
        if result.exists():
            continue
        unfinished = result.begin()
        if name == REFERENCE:
            save(unfinished.checkpoint, training.model, meta.model_copy(update={"kind": "downstream"}))
            Vocabulary.of(stage.dataset, meta.spec).write(unfinished.checkpoint)
        nothing = TrainedOn(first_day=0, end_day=1, rows=0)
        unfinished.write(Fitted(model=name, trained_on=nothing), scores)
        result.end(unfinished)
    return stage


def release(stage: StageContext, name: str, downstream: str) -> None:
    delivered = stage.run.report_of("deliver")
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        before = catalog.releases()
        expected = before[-1].id if before else None
        new = Release(
            id=name, space=delivered["space"], epoch=delivered["epoch"], foundation="f",
            downstream=downstream, previous=expected,
        )  # fmt: skip
        catalog.swap_release(
            expected, new, audit_line("promote", "me", "", before=expected or "", after=name)
        )


def test_models_are_compared_with_what_serves_until_they_were_released(
    stage: StageContext, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def judged_against() -> str | None:
        champion: str | None = run_stage("retrain_downstream", CONFIG, settings)["champion"]["release"]
        return champion

    trained = {path: path.stat().st_ino for path in Path(stage.run.path, "train").rglob("result/*")}
    assert judged_against() is None
    release(stage, "r-1", "of another run")
    assert judged_against() == "r-1", "somebody was faster"
    assert "release r-1 serves, and the models were judged against None" in caplog.text
    release(stage, "r-2", "of another run")
    keep_report(stage.run, "promote", {"promoted": False})
    assert judged_against() == "r-1", "what is decided stays decided"
    (stage.run.path / "stages" / "promote.json").unlink()
    own = stage.run.report_of("retrain_downstream")["downstream"]
    assert judged_against() == "r-2"
    release(stage, "r-3", own)
    assert judged_against() == "r-2", "these models serve, the report of their promotion was not written"
    release(stage, "r-4", "rolled back to")
    assert judged_against() == "r-2"
    assert trained == {path: path.stat().st_ino for path in Path(stage.run.path, "train").rglob("result/*")}
