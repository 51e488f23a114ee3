"""From the watermark to the head: which delivered run a retraining goes on with."""

from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import SPACES, keep_report, publish_epoch, settings_of

from vista.config import RefreshConfig, Settings
from vista.delivery.audit import audit_line
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch, Release
from vista.delivery.next_summaries import NextSummaries, next_summaries
from vista.jobs import NoConfig
from vista.runs import RunDirectory

SPACE = SPACES[0]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def release(settings: Settings, epoch: Epoch) -> None:
    with closing(open_catalog(settings.catalog_url)) as catalog:
        releases = catalog.releases()
        new = Release(
            id=f"r-{len(releases)}", space=epoch.space, epoch=epoch.epoch, foundation="f", downstream="d"
        )
        catalog.swap_release(releases[-1].id if releases else None, new, audit_line("promote", "me", ""))


def run_of(
    settings: Settings, epoch: Epoch, *, adopted: bool = True, delivered: bool = True, finished: bool = False
) -> RunDirectory:
    run_id = f"run-{epoch.space}-{epoch.epoch}"
    run = RunDirectory.open(settings.runs, RefreshConfig(recipe="smoke", run_id=run_id, warm_start=adopted))
    keep_report(run, "train_foundation", {"adopted": adopted})
    keep_report(run, "deliver", {"space": epoch.space, "epoch": epoch.epoch, "delivered": delivered})
    if finished:
        finish(run)
    return run


def finish(run: RunDirectory) -> None:
    keep_report(run, "clean_up", {})


def found(settings: Settings) -> NextSummaries:
    return next_summaries(NoConfig(), settings)


def test_nothing_waits_before_the_first_release_and_after_a_whole_refresh(
    tmp_path: Path, settings: Settings
) -> None:
    assert found(settings).config is None
    epoch = publish_epoch(tmp_path)
    run_of(settings, epoch, adopted=False)
    assert found(settings).config is None
    release(settings, epoch)
    assert found(settings).config is None, "it goes on by itself"
    finish(RunDirectory.named(settings.runs, f"run-{SPACE}-1"))
    assert found(settings) == NextSummaries(
        config=None, space=SPACE, watermark_us=1_000, head_us=1_000, epochs=()
    )


def test_five_ranges_are_one_step_to_the_newest(tmp_path: Path, settings: Settings) -> None:
    """And a watermark moves with the report that ends the run, at once over all five."""
    first, *later = [publish_epoch(tmp_path, as_of_us=1_000 * number) for number in range(1, 7)]
    run_of(settings, first, adopted=False, finished=True)
    release(settings, first)
    runs = [run_of(settings, epoch) for epoch in later]
    waiting = found(settings)
    assert waiting.config == runs[-1].config()
    assert (waiting.watermark_us, waiting.head_us, waiting.epochs) == (1_000, 6_000, (2, 3, 4, 5, 6))
    assert found(settings) == waiting, "asking changes nothing"
    finish(runs[-1])
    assert (found(settings).config, found(settings).watermark_us) == (None, 6_000)
    run_of(settings, publish_epoch(tmp_path, as_of_us=7_000))
    assert found(settings).epochs == (7,)


def test_a_day_that_was_exported_twice_is_retrained_on_its_newer_epoch(
    tmp_path: Path, settings: Settings
) -> None:
    """By another foundation of the same space: both epochs are as of the same time."""
    first = publish_epoch(tmp_path)
    run_of(settings, first, adopted=False, finished=True)
    release(settings, first)
    older, newer = [publish_epoch(tmp_path, as_of_us=2_000, variant=number) for number in (1, 2)]
    before, after = run_of(settings, older), run_of(settings, newer)
    assert (found(settings).config, found(settings).epochs) == (after.config(), (2, 3))
    finish(before)
    assert (found(settings).config, found(settings).epochs) == (after.config(), (3,))
    finish(after)
    assert (found(settings).config, found(settings).epochs) == (None, ())


def test_what_stays_in_the_table_or_is_of_the_past_does_not_wait(tmp_path: Path, settings: Settings) -> None:
    newest, older, table_only, withdrawn = [
        publish_epoch(tmp_path, as_of_us=as_of_us) for as_of_us in (5_000, 4_000, 6_000, 7_000)
    ]
    other = publish_epoch(tmp_path, space=SPACES[1], as_of_us=9_000)
    run_of(settings, newest, adopted=False, finished=True)
    release(settings, newest)
    run_of(settings, older)
    run_of(settings, table_only, delivered=False)
    run_of(settings, withdrawn)
    run_of(settings, other)
    with closing(open_catalog(settings.catalog_url)) as catalog:
        catalog.withdraw(SPACE, withdrawn.epoch, audit_line("withdraw", "me", "bad"))
    assert found(settings).config is None


def test_a_run_with_a_damaged_report_is_passed_over(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = [publish_epoch(tmp_path, as_of_us=1_000 * number) for number in (1, 2, 3)]
    run_of(settings, first, adopted=False, finished=True)
    release(settings, first)
    run = run_of(settings, second)
    (run_of(settings, third).path / "stages" / "deliver.json").write_text("{")
    assert found(settings).config == run.config()
    assert "its reports are damaged" in caplog.text
