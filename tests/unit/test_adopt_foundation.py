"""The foundation that serves, adopted by a run on newer events: the same model, epochs for new days alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_warm_start import DAYS, Refreshed, config_of, refresh, shop, write_day
from training_data import epoch_times, settings_of

from vista.config import RefreshConfig, Settings
from vista.delivery.publish import export_id
from vista.errors import InputError
from vista.jobs import run_stage
from vista.model.checkpoint import load, load_meta
from vista.train.stage import StageContext
from vista.train.train_foundation import train_foundation


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    torch.set_num_threads(1)
    return settings_of(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop(tmp_path_factory.mktemp("data") / "shop", DAYS)


@pytest.fixture(scope="module")
def cold(settings: Settings, folder: Path) -> Refreshed:
    return refresh(config_of(folder, "cold"), settings)


def adopted(settings: Settings, config: RefreshConfig) -> StageContext:
    run_stage("prepare", config, settings)
    run_stage("adopt_foundation", config, settings)
    return StageContext.open(config, settings)


def exports(stage: StageContext) -> list[str]:
    """What the run's foundation would be exported as."""
    foundation = stage.run.report_of("train_foundation")
    return [
        export_id(foundation["space"], foundation["digest"], as_of_us, stage.recipe.delivery.codec)
        for as_of_us in epoch_times(stage)
    ]


def test_on_the_same_days_there_is_nothing_to_export(
    settings: Settings, cold: Refreshed, folder: Path
) -> None:
    stage = adopted(settings, config_of(folder, "same", warm_start=True))
    report = stage.run.report_of("train_foundation")
    assert (report["adopted"], report["space"]) == (True, cold.epoch.space)
    assert report["start"] == cold.release.foundation
    assert report["fitted_end_day"] is None, "other runs have fitted it"
    theirs, ours = load_meta(Path(cold.release.foundation)), load_meta(Path(report["checkpoint"]))
    assert ours == theirs
    weights, before = load(Path(report["checkpoint"]))[0].state_dict(), cold.foundation.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in before)
    scores, expected = (one.result("foundation").scores() for one in (stage, cold.stage))
    np.testing.assert_allclose(scores.own_N, expected.own_N, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores.frozen_N, expected.frozen_N, rtol=0, atol=1e-6)
    # the cold run's epochs were opened by the test under names of its own: what counts is how many there are
    assert len(exports(stage)) == len(epoch_times(cold.stage))


def test_a_new_day_is_one_more_export_and_an_older_one_is_none(
    settings: Settings, cold: Refreshed, folder: Path
) -> None:
    write_day(folder, DAYS)
    newer = adopted(settings, config_of(folder, "newer", warm_start=True))
    same = StageContext.open(config_of(folder, "same", warm_start=True), settings)
    assert exports(newer)[:-1] == exports(same)
    assert newer.dataset.split().n == DAYS
    earlier = config_of(folder, "earlier", warm_start=True, until="2022-01-12")
    assert exports(adopted(settings, earlier)) == exports(newer)[: len(exports(newer)) - 2]


def test_a_trained_foundation_says_which_days_it_was_fitted_on(settings: Settings, cold: Refreshed) -> None:
    """The stage itself, on a training that is finished."""
    days = cold.job.days
    report = train_foundation(cold.stage.config, settings)
    assert (report.trained_on.first_day, report.fitted_end_day, report.trained_on.end_day) == (
        days.first, days.valid, days.end,
    )  # fmt: skip
    assert days.valid < days.end


def test_what_cannot_be_adopted(settings: Settings, cold: Refreshed, folder: Path) -> None:
    cold_values = config_of(folder, "cold-values")
    run_stage("prepare", cold_values, settings)
    with pytest.raises(InputError, match="give --warm-start True"):
        run_stage("adopt_foundation", cold_values, settings)
    before = config_of(folder, "before", warm_start=True, until="2022-01-10")
    run_stage("prepare", before, settings)
    with pytest.raises(InputError, match="which leaves no test day"):
        run_stage("adopt_foundation", before, settings)
