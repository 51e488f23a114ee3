"""The stages around a training: the join that must not leak, the champion, results, clean-up."""

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import epoch_times, foundation_in_place, opened, published

from vista.config import RefreshConfig, Settings
from vista.data.schema import buckets_of
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Release
from vista.delivery.publish import commit
from vista.errors import CheckpointError, LeakError, StageError
from vista.evaluate.metrics import Scores
from vista.evaluate.refresh_report import TrainedOn
from vista.model.checkpoint import load, load_meta, save
from vista.model.ranker import Ranker
from vista.summary.codec import codec_of, encode_summaries
from vista.summary.record import space_id
from vista.summary.table import write_shard
from vista.train.champion import score_champion
from vista.train.jobs import DownstreamJob, Training, training_days, usable_epochs
from vista.train.loop import fit
from vista.train.retrain_downstream import check_join, downstream_job
from vista.train.stage import Fitted, Result, StageContext
from vista.train.train_foundation import foundation_job
from vista.train.vocabulary import Vocabulary

CONFIG = RefreshConfig(recipe="smoke", run_id="unit", recent_tail=3)


@pytest.fixture(scope="module")
def stage(settings: Settings) -> StageContext:
    torch.set_num_threads(1)
    return foundation_in_place(CONFIG, settings)


def job_on(stage: StageContext, space: str) -> DownstreamJob:
    windows = stage.dataset.split()
    return DownstreamJob(
        dataset=stage.run.data,
        foundation=Path(stage.run.report_of("train_foundation")["checkpoint"]),
        catalog_url=stage.settings.catalog_url,
        space=space,
        epochs=tuple(one.epoch for one in usable_epochs(stage.settings.catalog_url, space)),
        train=stage.recipe.downstream.model_copy(update={"workers": 1}),
        days=training_days(windows.k, windows.n, 1),
    )


@pytest.fixture(scope="module")
def good(stage: StageContext) -> Training:
    """A trained downstream model on honest epochs of every day."""
    for as_of_us in epoch_times(stage):
        published(stage, opened(stage, as_of_us, "good"))
    training = Training(job_on(stage, "good"))
    fit(training.task())
    return training


def test_every_row_is_joined_and_checked(stage: StageContext, good: Training) -> None:
    windows = stage.dataset.split()
    join = check_join(good.dataset, good.reader, good.job.days.first)
    rows = good.dataset.examples(windows.k, windows.n + 1).num_candidates_E.sum()
    assert (join.rows, join.without_summary) == (rows, 0)
    assert 0 < join.max_summary_age_s <= 86_400
    scores = good.tested(windows.n)[0].take(stage.test_rows())
    assert np.isfinite(scores.own_N).all()
    assert np.isfinite(scores.frozen_N).all()
    assert good.max_uih == 3  # the recent tail, and nothing more of the history


def test_a_co_trained_foundation_s_summaries_are_enough(stage: StageContext, tmp_path: Path) -> None:
    """Trained beside HSTU, exported, and used without it."""
    recipe = stage.recipe.model_copy(update={"foundation_slot": "vista_hstu"})
    foundation = Training(foundation_job(replace(stage, recipe=recipe)))
    fit(foundation.task())
    alone = load_meta(Path(stage.run.report_of("train_foundation")["checkpoint"]))
    save(tmp_path, foundation.model, alone.model_copy(update={"kind": "vista_hstu"}))
    for as_of_us in epoch_times(stage):
        published(stage, opened(stage, as_of_us, "beside", checkpoint=str(tmp_path)))
    downstream = Training(job_on(stage, "beside").model_copy(update={"foundation": tmp_path}))
    losses = [point.values["loss"] for point in fit(downstream.task()).curve if "loss" in point.values]
    assert max(losses) < 0.75  # log 2 is what knows nothing has; so little data teaches no more
    assert np.isfinite(downstream.tested(stage.dataset.split().n)[0].take(stage.test_rows()).own_N).all()


def test_a_summary_that_has_seen_its_day_is_a_leak(stage: StageContext) -> None:
    """Its record says so: the newest event is not before the epoch's time."""
    first, *_ = epoch_times(stage)
    epoch = opened(stage, first, "seen")
    attempt = Path(stage.settings.warehouse, "seen")
    for bucket in range(stage.dataset.buckets):
        known_U = stage.dataset.users.id_R
        user_id_B = known_U[buckets_of(known_U, epoch.buckets) == bucket]
        users = len(user_id_B)
        seq_B, time_B = np.zeros(users, np.int64), np.full(users, first)
        config = stage.recipe.model
        records = encode_summaries(
            np.ones((users, config.seeds, config.width), np.float32), space_id=space_id("seen"),
            epoch=epoch.epoch, as_of_us=first, user_id_B=user_id_B, seq_B=seq_B, event_time_us_B=time_B,
            codec=codec_of("int8"), zstd=False,
        )  # fmt: skip
        write_shard(attempt, bucket, user_id_B, seq_B, time_B, records)
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        commit(catalog, epoch, attempt)
    training = Training(job_on(stage, "seen"))
    with pytest.raises(LeakError, match="withdraw the epoch"):
        check_join(training.dataset, training.reader, training.job.days.first)
    with pytest.raises(LeakError, match="withdraw the epoch"):
        fit(training.task())


def test_a_model_of_the_future_is_a_leak(stage: StageContext) -> None:
    first, second, *_ = epoch_times(stage)
    published(stage, opened(stage, first, "future", trained_until_us=second))
    with pytest.raises(LeakError, match="could not exist then"):
        Training(job_on(stage, "future"))


def test_the_champion_is_scored_where_it_can_be(stage: StageContext, good: Training, tmp_path: Path) -> None:
    champion, scores_N = score_champion(stage)
    assert (champion.release, champion.comparable, scores_N) == (None, False, None)

    foundation, meta = load(good.job.foundation)
    assert isinstance(foundation, Ranker)
    checkpoint = tmp_path / "champion"
    save(checkpoint, good.model, meta.model_copy(update={"kind": "downstream"}))
    vocabulary = Vocabulary.of(stage.dataset, meta.spec)
    vocabulary.write(checkpoint)
    release(stage, good.job, checkpoint)
    champion, scores_N = score_champion(stage)
    assert champion.comparable, champion.why
    assert scores_N is not None
    n = stage.dataset.split().n
    # weights that lie elsewhere in memory may be added in another order
    np.testing.assert_allclose(scores_N, good.predict(n, n + 1), rtol=0, atol=1e-6)

    vocabulary.model_copy(update={"items": "of other ids", "value_edges": (1.0,)}).write(checkpoint)
    champion, _ = score_champion(stage)
    assert champion.why.endswith("was trained on data with other items, value_edges")
    release(stage, good.job, tmp_path / "gone")
    champion, _ = score_champion(stage)
    assert "cannot be read" in champion.why


def release(stage: StageContext, job: DownstreamJob, downstream: Path) -> None:
    with closing(open_catalog(stage.settings.catalog_url)) as catalog:
        before = catalog.releases()
        expected = before[-1].id if before else None
        new = Release(
            id=f"r-{len(before)}",
            space=job.space,
            epoch=1,
            foundation=str(job.foundation),
            downstream=str(downstream),
            previous=expected,
        )
        line = AuditLine(time_us=0, actor="test", action="promote", reason="", before="", after=new.id)
        catalog.swap_release(expected, new, line)


def test_the_downstream_job_follows_the_windows(stage: StageContext) -> None:
    from vista.train.export_summaries import ExportReport

    report = ExportReport(space="good", epochs=(), newest_epoch=1)
    stage.run.keep_stage_report("export_summaries", report, seconds=0.0)
    job, windows = downstream_job(stage), stage.dataset.split()
    assert (job.space, job.days.first, job.days.valid, job.days.end) == (
        "good", windows.k, windows.n - 1, windows.n,
    )  # fmt: skip


def test_a_result_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    result = Result(tmp_path / "model" / "result")
    fitted = Fitted(model="m", trained_on=TrainedOn(first_day=0, end_day=1, rows=2))
    unfinished, late = result.begin(), result.begin()
    scores = Scores(np.array([0.5, np.nan], np.float32), np.array([0.25, np.nan], np.float32))
    unfinished.write(fitted, scores)
    assert not result.exists()
    result.end(unfinished)
    late.write(fitted, scores.take(np.zeros(2, np.int64)))
    result.end(late)
    assert result.fitted() == fitted
    np.testing.assert_array_equal(result.scores().own_N, scores.own_N)
    np.testing.assert_array_equal(result.scores().frozen_N, scores.frozen_N)
    assert list((tmp_path / "model").iterdir()) == [result.path]


def whole_result(path: Path) -> Result:
    result = Result(path / "train" / "foundation" / "result")
    unfinished = result.begin()
    fitted = Fitted(model="foundation", trained_on=TrainedOn(first_day=0, end_day=1, rows=2))
    unfinished.write(fitted, Scores(np.full(100, 0.5, np.float32), np.full(100, 0.25, np.float32)))
    result.end(unfinished)
    return result


def one_array(whole: bytes) -> bytes:
    kept = io.BytesIO()
    np.savez(kept, own_N=np.full(100, 0.5, np.float32))
    return kept.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"{}",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.replace(np.float32(0.25).tobytes(), np.float32(0.75).tobytes(), 1),
        one_array,
    ],
)
def test_damaged_scores_are_named_with_their_remedy(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    result = whole_result(tmp_path)
    assert (result.scores().frozen_N == 0.25).all()
    file = result.path / "scores.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StageError) as raised:
        result.scores()
    assert str(raised.value).startswith(f"{file} cannot be read (")
    assert f"delete {result.path} and stages/train_foundation.json of the run" in str(raised.value)


@pytest.mark.parametrize("content", ["", "{}", '{"model": "m"'])
def test_damaged_words_of_a_training_are_named_with_their_remedy(tmp_path: Path, content: str) -> None:
    result = whole_result(tmp_path)
    (result.path / "fitted.json").write_text(content)
    with pytest.raises(
        StageError, match=r"fitted\.json cannot be read .*`make run RESUME=1` makes them again"
    ):
        result.fitted()


@pytest.mark.parametrize("content", [None, '{"kind": "vis', "{}"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json cannot be read .*new run"):
        load_meta(tmp_path)
