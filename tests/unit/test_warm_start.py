"""Two refreshes of a shop whose events grow by a day: the second goes on in the space of the first.

The stages' own functions, in this process, without Ray and MLflow.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from delivery_samples import deliver_here
from training_data import epoch_times, opened, published, settings_of

from infra.run import parse
from vista.config import RefreshConfig, Settings
from vista.data.dataset import Dataset
from vista.data.schema import DAY_US
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Epoch, Release
from vista.delivery.publish import export_id
from vista.delivery.regions import open_backends
from vista.delivery.release import promote
from vista.errors import InputError, StageError
from vista.evaluate.metrics import Metrics
from vista.jobs import run_stage
from vista.model.checkpoint import load, load_meta
from vista.model.ranker import Ranker
from vista.runs import RunDirectory
from vista.serve.score import score
from vista.train import retrain_downstream, train_foundation
from vista.train.champion import score_champion
from vista.train.export_summaries import ExportReport, PublishedEpoch
from vista.train.jobs import Days, RankerJob, Training, usable_epochs
from vista.train.loop import Snapshot, fit
from vista.train.stage import StageContext
from vista.train.train_foundation import FoundationReport, planned
from vista.train.vocabulary import Vocabulary
from vista.train.warm_start import holding

USERS, DAYS, START_US = 30, 6, 19_000 * DAY_US
MAPPING = """
user: customer
item: product
category: department
time: us
time_unit: us
value: price
label: "bought"
string_ids: [item]
"""


def write_day(folder: Path, day: int) -> None:
    """One file per day: every user sees four products, of which each day brings three new ones."""
    random = np.random.default_rng(day)
    product = random.integers(0, 12 + 3 * day, (USERS, 4))
    time_us = START_US + day * DAY_US + np.sort(random.integers(0, DAY_US, (USERS, 4)), axis=1)
    pl.DataFrame(
        {
            "customer": np.repeat(np.arange(USERS), 4),
            "product": [f"P-{number}" for number in product.flatten()],
            "department": product.flatten() % 3,
            "us": time_us.flatten(),
            "price": (random.random(USERS * 4) * 10 ** (1 + day % 3)).round(2),  # other quantiles every day
            "bought": (product.flatten() + np.repeat(np.arange(USERS), 4)) % 2,
        }
    ).write_csv(folder / f"day-{day:02d}.csv")


def shop(folder: Path, days: int) -> Path:
    folder.mkdir()
    (folder / "events.yaml").write_text(MAPPING)
    for day in range(days):
        write_day(folder, day)
    return folder


def config_of(folder: Path, run_id: str, **changes: object) -> RefreshConfig:
    values = {"recipe": "events", "data_dir": str(folder), "run_id": run_id, "seeds": 2, "width": 8}
    return RefreshConfig.model_validate(values | {"workers": 1} | changes)


def prepared(config: RefreshConfig, settings: Settings) -> StageContext:
    run_stage("prepare", config, settings)
    return StageContext.open(config, settings)


def trained(training: Training, directory: Path) -> Path:
    """Fit in this process; where the final state is."""

    def keep(snapshot: Snapshot) -> None:
        snapshot.write(directory)

    fit(training.task(), keep=keep)
    return directory


@dataclass(frozen=True)
class Refreshed:
    """A finished refresh."""

    stage: StageContext
    job: RankerJob
    epoch: Epoch
    release: Release

    def stage_in(self, settings: Settings) -> StageContext:
        return replace(self.stage, settings=settings)

    @property
    def foundation(self) -> Ranker:
        model, _ = load(Path(self.release.foundation))
        assert isinstance(model, Ranker)
        return model


def exported(config: RefreshConfig, settings: Settings) -> tuple[StageContext, RankerJob, list[Epoch]]:
    """A run whose foundation has been trained and its summaries published."""
    stage = prepared(config, settings)
    job, space = planned(stage)
    training = Training(job)
    state = trained(training, stage.run.training("foundation") / "state")
    train_foundation.finish(stage, training, space, state)
    checkpoint = stage.result("foundation").checkpoint
    meta = load_meta(checkpoint)
    report = FoundationReport(
        space=space,
        checkpoint=str(checkpoint),
        start=job.start,
        digest=meta.digest,
        trained_until_us=meta.trained_until_us,
        mlflow_run_id="",
        metrics=Metrics(auc=0.5, ne=1, log_loss=1, gauc=None, calibration=1, ece=0, rows=1),
        trained_on=training.trained_on(),
        fitted_end_day=job.days.valid,
    )
    stage.run.keep_stage_report("train_foundation", report, seconds=0.0)
    epochs = [
        published(stage, opened(stage, as_of_us, space, export_id=f"{config.run_id}/{as_of_us}"))
        for as_of_us in epoch_times(stage)
    ]
    keep_export(stage, epochs)
    return stage, job, epochs


def keep_export(stage: StageContext, epochs: list[Epoch]) -> None:
    kept = tuple(
        PublishedEpoch(
            epoch=one.epoch, as_of_us=one.as_of_us, rows=one.rows, republished=0, location=one.location
        )
        for one in epochs
    )
    report = ExportReport(space=epochs[-1].space, epochs=kept, newest_epoch=epochs[-1].epoch)
    stage.run.keep_stage_report("export_summaries", report, seconds=0.0)


def refresh(config: RefreshConfig, settings: Settings) -> Refreshed:
    stage, job, epochs = exported(config, settings)
    downstream = Training(retrain_downstream.downstream_job(stage))
    state = trained(downstream, stage.run.training("downstream") / "state")
    retrain_downstream.finish(stage, downstream, state)
    deliver_here(settings.home, epochs[-1], settings)
    return Refreshed(stage, job, epochs[-1], promoted(stage, epochs[-1]))


def promoted(stage: StageContext, epoch: Epoch) -> Release:
    with open_backends(stage.settings) as backends:
        releases = backends.catalog.releases()
        return promote(
            backends,
            space=epoch.space,
            epoch=epoch.epoch,
            foundation=str(stage.result("foundation").checkpoint),
            downstream=str(stage.result("downstream").checkpoint),
            actor="test",
            reason="",
            instead_of=releases[-1].id if releases else None,
        ).release


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    torch.set_num_threads(1)
    return settings_of(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def cold(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    return refresh(config_of(shop(tmp_path_factory.mktemp("cold") / "shop", DAYS), "cold"), settings)


@pytest.fixture(scope="module")
def warm(settings: Settings, cold: Refreshed, tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    """The next day's refresh."""
    folder = shop(tmp_path_factory.mktemp("warm") / "shop", DAYS + 1)
    return refresh(config_of(folder, "warm", warm_start=True), settings)


def test_the_space_goes_on_and_serves(settings: Settings, cold: Refreshed, warm: Refreshed) -> None:
    n = cold.stage.dataset.split().n
    assert warm.epoch.space == cold.epoch.space
    assert warm.epoch.epoch == cold.epoch.epoch + 1
    assert warm.epoch.as_of_us == warm.stage.dataset.day_start_us(n + 1) > cold.epoch.as_of_us
    answer = score(settings, "7", ["P-3", "P-28"])  # P-28 may be new
    assert (answer.release, answer.epoch, answer.degraded) == (warm.release.id, warm.epoch.epoch, None)
    champion, _ = score_champion(warm.stage)
    assert champion.comparable, champion.why


def test_a_champion_without_a_tail_reads_no_values(warm: Refreshed) -> None:
    """So other value buckets do not part it from a challenger; other ids do."""
    downstream = Path(warm.release.downstream)
    vocabulary = Vocabulary.read(downstream)
    vocabulary.model_copy(update={"value_edges": (1.0,)}).write(downstream)
    champion, _ = score_champion(warm.stage)
    assert champion.comparable, champion.why
    vocabulary.model_copy(update={"users": "others"}).write(downstream)
    champion, _ = score_champion(warm.stage)
    assert champion.why.endswith("was trained on data with other users")
    vocabulary.write(downstream)


def test_a_champion_without_a_usable_epoch_is_named_with_why(warm: Refreshed, tmp_path: Path) -> None:
    """The release is in the catalog, its epochs are not."""
    release = warm.release
    settings = warm.stage.settings.model_copy(update={"catalog_url": f"sqlite:///{tmp_path}/c.db"})
    with closing(open_catalog(settings.catalog_url)) as catalog:
        catalog.swap_release(None, release, audit_line("promote"))
    champion, scores_N = score_champion(replace(warm.stage, settings=settings))
    assert (champion.release, champion.comparable, scores_N) == (release.id, False, None)
    why = f"no epoch of {release.space} that it may read is published and not withdrawn"
    assert champion.not_compared == f"the champion {release.id} could not be compared: {why}"


def test_it_trains_on_what_the_start_had_not_seen(cold: Refreshed, warm: Refreshed) -> None:
    """No day twice, none left out; the new checkpoint is exported as of when it could first exist."""
    split = warm.stage.dataset.split()
    assert warm.job.start == Path(cold.release.foundation)
    assert (cold.job.days.end, warm.job.days.first, warm.job.days.end) == (
        cold.stage.dataset.split().k, cold.job.days.end, split.n,
    )  # fmt: skip
    assert warm.epoch.trained_until_us == warm.epoch.as_of_us


def test_tables_grow_from_the_unseen_row(cold: Refreshed, warm: Refreshed) -> None:
    earlier, begun = cold.foundation, Training(warm.job).model
    assert begun.spec.num_items > earlier.spec.num_items
    known = earlier.spec.num_items
    for name, weights in begun.state_dict().items():
        before = earlier.state_dict()[name]
        assert torch.equal(weights[: len(before)], before) if weights.dim() else torch.equal(weights, before)
    table = begun.scorer.items.item.table.weight
    assert torch.equal(table[known:], table[:1].expand(len(table) - known, -1))


def test_value_buckets_stay_those_of_the_space(cold: Refreshed, warm: Refreshed) -> None:
    edges = cold.stage.dataset.file.value_edges
    assert len(edges) > 2
    assert warm.stage.dataset.file.value_edges == edges
    assert Vocabulary.read(Path(warm.release.foundation)).value_edges == edges


def test_a_resumed_run_begins_where_it_began(settings: Settings, warm: Refreshed) -> None:
    """Its own epoch is published by now, and newer than what it began with."""
    assert planned(warm.stage)[0] == warm.job


def test_a_refresh_of_earlier_days_does_not_begin_with_later_ones(
    settings: Settings, cold: Refreshed, warm: Refreshed, tmp_path: Path
) -> None:
    config = config_of(shop(tmp_path / "shop", DAYS), "backfill", warm_start=True)
    job, space = planned(prepared(config, settings))
    assert (job.start, space) == (Path(cold.release.foundation), cold.epoch.space)
    early = prepared(config_of(shop(tmp_path / "early", 4), "early", warm_start=True), settings)
    with pytest.raises(InputError, match=r"was trained beyond 2022-01-10 00:00 UTC, which leaves no day"):
        planned(early)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": 3}, "seeds was 2 and is 3"),
        ({"width": 16}, "width was 8 and is 16"),
        ({"layers": 2}, "layers was 1 and is 2"),
        ({"recent_tail": 4}, "recent_tail was 0 and is 4"),
    ],
)
def test_another_shape_is_another_space(
    settings: Settings, warm: Refreshed, changes: dict[str, object], named: str
) -> None:
    """The difference is named before anything is prepared, and by `make run` before anything is started."""
    folder = Path(warm.stage.config.data_dir)
    config = config_of(folder, f"other-{next(iter(changes))}", warm_start=True, **changes)
    with pytest.raises(InputError, match=f"warm_start: {named}: that is another space"):
        run_stage("prepare", config, settings)
    assert not (settings.runs / config.run_id / "data").exists()
    variables = [f"{name}={value}".upper() for name, value in changes.items()]
    environment = {"VISTA_HOME": str(settings.home), "VISTA_RUNS": str(settings.home / "other-runs")}
    given = ["DATASET=events", f"DATA_DIR={folder}", "WARM_START=1", "SEEDS=2", "WIDTH=8", *variables]
    with pytest.raises(InputError, match=f"warm_start: {named}: that is another space"):
        parse(given, environment)
    assert not (settings.home / "other-runs").exists()


def without_the_first_product(folder: Path) -> None:
    first = folder / "day-00.csv"
    rows = pl.read_csv(first)
    rows.filter(pl.col("product") != rows["product"][0]).write_csv(first)


def in_another_order(folder: Path) -> None:
    """Two products change names, so text ids are numbered otherwise; their rows have the same numbers."""
    first = folder / "day-00.csv"
    text = first.read_text()
    first.write_text(text.replace("P-1,", "P-?,").replace("P-2,", "P-1,").replace("P-?,", "P-2,"))


@pytest.mark.parametrize("change", [without_the_first_product, in_another_order])
def test_ids_that_are_gone_or_have_other_rows_are_named(
    settings: Settings, warm: Refreshed, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = shop(tmp_path / "shop", DAYS + 1)
    change(folder)
    stage = prepared(config_of(folder, change.__name__, warm_start=True), settings)
    with pytest.raises(InputError, match=r"warm_start: items.* removed or reordered"):
        planned(stage)


def test_without_a_release_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    config = config_of(shop(tmp_path / "shop", DAYS), "first", warm_start=True)
    with pytest.raises(InputError, match=r"nothing is released in .* run without warm_start first"):
        run_stage("prepare", config, settings_of(tmp_path))
    assert not list(tmp_path.glob("*.db*")), "who only asks makes no catalog"


def copied(settings: Settings, folder: Path) -> Settings:
    """The same deployment with a catalog and a table of its own."""
    with (
        closing(sqlite3.connect(settings.catalog_url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(folder / "catalog.db")) as target,
    ):
        source.backup(target)
    own = {"catalog_url": f"sqlite:///{folder}/catalog.db", "warehouse": str(folder / "warehouse")}
    return settings.model_copy(update=own)


def audit_line(action: str) -> AuditLine:
    return AuditLine(time_us=0, actor="test", action=action, reason="", before="", after="")


def withdraw(settings: Settings, epoch: Epoch) -> None:
    with closing(open_catalog(settings.catalog_url)) as catalog:
        catalog.withdraw(epoch.space, epoch.epoch, audit_line("withdraw"))


def serve_again(settings: Settings, release: Release) -> None:
    """A new release that names what `release` named, as a rollback makes it."""
    with closing(open_catalog(settings.catalog_url)) as catalog:
        releases = catalog.releases()
        again = release.model_copy(update={"id": f"again-{len(releases)}", "previous": releases[-1].id})
        catalog.swap_release(releases[-1].id, again, audit_line("rollback"))


def test_only_foundations_of_releases_that_hold_are_gone_on_from(
    settings: Settings, cold: Refreshed, warm: Refreshed, tmp_path: Path
) -> None:
    """Not that of a release that was rolled back, unless it was made to serve again; not that of a withdrawn
    epoch."""
    copy, folder = copied(settings, tmp_path), shop(tmp_path / "shop", DAYS + 2)
    runs = count()

    def start() -> Path | None:
        config = config_of(folder, f"third-{next(runs)}", warm_start=True)
        return planned(prepared(config, copy))[0].start

    assert start() == Path(warm.release.foundation)
    serve_again(copy, cold.release)
    assert start() == Path(cold.release.foundation)
    serve_again(copy, warm.release)
    assert start() == Path(warm.release.foundation)
    withdraw(copy, warm.epoch)
    assert start() == Path(cold.release.foundation)
    serve_again(copy, cold.release)
    withdraw(copy, cold.epoch)
    both = f"epoch {cold.epoch.epoch} was withdrawn; the release of epoch {warm.epoch.epoch} was rolled back"
    with pytest.raises(InputError, match=f"may be gone on from .{both}.: roll back to a good release, or"):
        start()


def test_an_epoch_that_was_never_released_is_no_start(
    settings: Settings, cold: Refreshed, warm: Refreshed, tmp_path: Path
) -> None:
    """Its model was refused by the gate, or nobody has judged it yet."""
    copy, folder = copied(settings, tmp_path), shop(tmp_path / "shop", DAYS + 3)
    changes = {"trained_until_us": warm.epoch.trained_until_us + DAY_US, "checkpoint": "refused"}
    stage = prepared(config_of(folder, "fourth", warm_start=True), copy)
    as_of_us = warm.epoch.as_of_us + DAY_US
    refused = opened(warm.stage_in(copy), as_of_us, warm.epoch.space, **changes)
    with closing(open_catalog(copy.catalog_url)) as catalog:
        catalog.publish(refused.model_copy(update={"location": warm.epoch.location, "rows": warm.epoch.rows}))
    assert planned(stage)[0].start == Path(warm.release.foundation)


@dataclass(frozen=True)
class Challenger:
    """The run of the day after `warm`, whose gate has not decided yet: its summaries are published. It
    deploys into a copy of the catalog."""

    stage: StageContext
    job: RankerJob
    epochs: list[Epoch]

    @property
    def settings(self) -> Settings:
        return self.stage.settings


@pytest.fixture(scope="module")
def challenger(settings: Settings, warm: Refreshed, tmp_path_factory: pytest.TempPathFactory) -> Challenger:
    folder = tmp_path_factory.mktemp("challenger")
    config = config_of(shop(folder / "shop", DAYS + 2), "challenger", warm_start=True, learning_rate=1.0)
    return Challenger(*exported(config, copied(settings, folder)))


def test_a_champion_reads_no_summary_of_its_challenger(
    warm: Refreshed, challenger: Challenger, tmp_path: Path
) -> None:
    """Of the same space and as of a later time than its own; those of its own foundation it reads, whichever
    run has published them."""
    copy, n = copied(challenger.settings, tmp_path), challenger.stage.dataset.split().n
    stage = replace(challenger.stage, settings=copy)
    (theirs,) = challenger.epochs
    assert theirs.as_of_us == stage.dataset.day_start_us(n)
    champion, beside_N = score_champion(stage)
    withdraw(copy, theirs)
    _, alone_N = score_champion(stage)
    assert champion.release == warm.release.id
    assert beside_N is not None
    assert alone_N is not None
    np.testing.assert_allclose(beside_N, alone_N, rtol=0, atol=1e-6)

    adopted = shutil.copytree(warm.release.foundation, tmp_path / "adopted")
    made_of = export_id(warm.epoch.space, load_meta(adopted).digest, theirs.as_of_us, "int8")
    changes = {"checkpoint": str(adopted), "trained_until_us": warm.epoch.trained_until_us}
    published(stage, opened(stage, theirs.as_of_us, warm.epoch.space, export_id=made_of, **changes))
    _, fresh_N = score_champion(stage)
    assert fresh_N is not None
    rows = stage.test_rows()
    assert np.abs(fresh_N[rows] - alone_N[rows]).max() > 1e-4


@pytest.fixture(scope="module")
def after_a_refusal(
    warm: Refreshed, challenger: Challenger, tmp_path_factory: pytest.TempPathFactory
) -> Challenger:
    """The next day's run: the challenger was refused. As of the run's own time there are later epochs of the
    refused and of the released foundation, too."""
    folder = tmp_path_factory.mktemp("after")
    copy = copied(challenger.settings, folder)
    config = config_of(shop(folder / "shop", DAYS + 3), "after", warm_start=True)
    run = Challenger(*exported(config, copy))
    (own,) = run.epochs
    for checkpoint in (str(challenger.stage.result("foundation").checkpoint), warm.release.foundation):
        changes = {"export_id": f"late {checkpoint}", "checkpoint": checkpoint}
        published(run.stage, opened(run.stage, own.as_of_us, own.space, **changes))
    return run


def test_a_downstream_model_reads_no_summary_of_a_refused_foundation(
    settings: Settings, cold: Refreshed, warm: Refreshed, after_a_refusal: Challenger
) -> None:
    """Nor do two epochs as of one time compete: days before the run's own are joined with released ones."""
    run = after_a_refusal
    (own,) = run.epochs
    job = retrain_downstream.downstream_job(run.stage)
    assert job.foundation == run.stage.result("foundation").checkpoint
    released = [one.epoch for one in usable_epochs(settings.catalog_url, cold.epoch.space)]
    assert warm.epoch.epoch in released
    assert job.epochs == (*released, own.epoch)
    reader = Training(job).reader
    n = run.stage.dataset.split().n
    for day, as_of_us in ((n, own.as_of_us), (n - 1, warm.epoch.as_of_us)):
        examples = run.stage.dataset.examples(day, day + 1)
        _, found_B, as_of_us_B = reader.lookup(examples.user_id_E, examples.cut_us_E)
        assert set(as_of_us_B[found_B].tolist()) == {as_of_us}


def test_a_resumed_downstream_training_reads_what_it_began_with(
    settings: Settings, cold: Refreshed, after_a_refusal: Challenger, tmp_path: Path
) -> None:
    """Whatever was released or rolled back meanwhile, unless the run has exported anew."""
    run, copy = after_a_refusal, copied(after_a_refusal.settings, tmp_path)
    shutil.copytree(run.stage.run.path, tmp_path / "run")
    stage = replace(run.stage, settings=copy, run=RunDirectory(tmp_path / "run"))
    before, (own,) = retrain_downstream.downstream_job(stage), run.epochs
    serve_again(copy, cold.release)
    assert retrain_downstream.downstream_job(stage) == before

    withdraw(copy, own)
    again = published(stage, opened(stage, own.as_of_us, own.space, export_id="again"))
    keep_export(stage, [again])
    held = [
        one.epoch for one in usable_epochs(settings.catalog_url, own.space) if one.epoch <= cold.epoch.epoch
    ]
    assert retrain_downstream.downstream_job(stage).epochs == (*held, again.epoch)


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_damaged_choice_of_epochs_is_named_with_its_remedy(warm: Refreshed, content: str) -> None:
    kept = warm.stage.run.training("downstream") / "epochs.json"
    whole = kept.read_text()
    kept.write_text(content)
    with pytest.raises(
        StageError, match=r"epochs\.json cannot be read .*: delete .*/downstream, then `make run"
    ):
        retrain_downstream.downstream_job(warm.stage)
    kept.write_text(whole)


def test_a_downstream_model_is_not_validated_on_what_its_foundation_was_fitted_on(
    cold: Refreshed, warm: Refreshed, challenger: Challenger, tmp_path: Path
) -> None:
    """`warm` had days enough to keep one from its foundation; the challenger's only new day is all that there
    was to fit. Of an adopted foundation all days count that it was trained on."""

    def days(run: Refreshed | Challenger) -> tuple[Days, Days]:
        return run.job.days, retrain_downstream.downstream_job(run.stage).days

    assert days(cold) == (Days(first=0, valid=2, end=3), Days(first=3, valid=4, end=5))
    assert days(warm) == (Days(first=3, valid=5, end=6), Days(first=4, valid=5, end=6))
    assert days(challenger) == (Days(first=6, valid=7, end=7), Days(first=4, valid=7, end=7))

    run = RunDirectory(shutil.copytree(warm.stage.run.path, tmp_path / "run"))
    report = FoundationReport.model_validate(run.report_of("train_foundation"))
    for end_day in (report.trained_on.end_day, 99):
        trained_on = report.trained_on.model_copy(update={"end_day": end_day})
        adopted = {"fitted_end_day": None, "adopted": True, "trained_on": trained_on}
        run.keep_stage_report("train_foundation", report.model_copy(update=adopted), seconds=0.0)
        job = retrain_downstream.downstream_job(replace(warm.stage, run=run))
        assert job.days == Days(first=4, valid=6, end=6), "never beyond the training days"


def test_a_rollback_takes_back_what_came_between() -> None:
    def release(number: int, epoch: int) -> Release:
        return Release(id=f"r-{number}", space="s", epoch=epoch, foundation="f", downstream="d")

    def held(*epochs: int) -> list[int]:
        return [one.epoch for one in holding([release(*pair) for pair in enumerate(epochs)])]

    assert held(1, 2, 3) == [1, 2, 3]
    assert held(1, 2, 3, 2) == [1, 2]
    assert held(1, 2, 3, 1) == [1]
    assert held(1, 2, 3, 1, 4) == [1, 4]
    assert held(1, 2, 1, 2) == [1, 2], "rolled back and forward again"


@pytest.mark.parametrize("content", ["", "{}", '{"space": "s", "checkp'])
def test_a_damaged_start_is_named_with_its_remedy(warm: Refreshed, content: str) -> None:
    kept = warm.stage.run.training("foundation") / "warm_start.json"
    whole = kept.read_text()
    kept.write_text(content)
    with pytest.raises(StageError) as raised:
        planned(warm.stage)
    assert str(raised.value).startswith(f"{kept} cannot be read (")
    assert f"delete {kept.parent}, then `make run RESUME=1`" in str(raised.value)
    kept.write_text(whole)


def test_changed_texts_of_ids_are_seen(warm: Refreshed, tmp_path: Path) -> None:
    """They say what the numbers of a vocabulary mean."""
    shutil.copytree(warm.stage.run.data, tmp_path / "data")
    texts = tmp_path / "data" / "ids-item.parquet"
    texts.write_bytes(texts.read_bytes().replace(b"P-1", b"P-?", 1))
    with pytest.raises(StageError, match=r"ids-item\.parquet cannot be read \(its checksum is"):
        Vocabulary.of(Dataset.open(tmp_path / "data"), warm.foundation.spec)
