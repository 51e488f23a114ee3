"""The check that runs every quarter of an hour: it finds, mends through `repair`, and fails with the rest."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, deliver_here, publish_epoch, record, settings_of, users_of

from vista.config import CheckConfig, Settings
from vista.delivery.interfaces import Epoch
from vista.delivery.log import open_log
from vista.delivery.regions import open_backends
from vista.delivery.release import promote
from vista.delivery.sqlite_store import SqliteStore
from vista.delivery.worker import drain
from vista.errors import NoLogError, RegionNotReadyError
from vista.serve.check_delivery import CheckReport, check_delivery

SPACE = SPACES[0]
NOW = CheckConfig(max_lag_s=0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def epoch(tmp_path: Path, settings: Settings) -> Epoch:
    """One that serves in both regions."""
    found = publish_epoch(tmp_path)
    deliver_here(tmp_path, found, settings)
    with open_backends(settings) as backends:
        promote(
            backends, space=SPACE, epoch=1, foundation="f", downstream="d", actor="me", reason="",
            instead_of=None,
        )  # fmt: skip
    return found


def whole(report: CheckReport) -> bool:
    return {region: (one.coverage, one.lag_records) for region, one in report.regions.items()} == {
        "east": (1.0, 0), "west": (1.0, 0),
    }  # fmt: skip


def actions(settings: Settings) -> list[str]:
    with open_backends(settings) as backends:
        return [line.action for line in backends.catalog.audit()]


def test_without_a_release_there_is_nothing_to_check(settings: Settings) -> None:
    assert check_delivery(NOW, settings) == CheckReport(release=None, found=(), regions={})


def test_a_whole_delivery_is_left_alone(settings: Settings, epoch: Epoch) -> None:
    report = check_delivery(NOW, settings)
    assert (report.found, whole(report), actions(settings)) == ((), True, ["promote"])
    age_s = report.regions["east"].oldest_summary_age_s
    assert age_s is not None
    assert age_s > 10**9  # as of 1970, by the wall clock


def wiped(settings: Settings) -> None:
    with open_backends(settings) as backends:
        store = backends.stores["west"]
        assert isinstance(store, SqliteStore)
        with store._database.write() as connection:
            for table in ("summaries", "barriers", "offsets", "releases"):
                assert connection.execute(f"DELETE FROM {table}").rowcount > 0


def lost_log(settings: Settings) -> None:
    for path in settings.home.glob("log.db*"):
        path.unlink()


def replaced_log(settings: Settings) -> None:
    lost_log(settings)
    open_log(settings.log_url, BUCKETS).close()


def not_followed(settings: Settings) -> None:
    (user,) = users_of(1, 1)
    with open_backends(settings) as backends:
        backends.log.append(1, [record(user, 10**6)])


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (wiped, "region west, bucket 0 holds nothing of epoch 1"),
        (replaced_log, "region east, bucket 0 is at offset"),
        (not_followed, "region east lacks 1 records that the log held 0 s ago"),
    ],
)
def test_what_is_missing_comes_back(
    settings: Settings, epoch: Epoch, breaks: Callable[[Settings], None], says: str
) -> None:
    breaks(settings)
    report = check_delivery(NOW, settings)
    assert says in "\n".join(report.found)
    assert whole(report)
    assert actions(settings) == ["promote", "repair", "repair"], "begun, and ended"
    assert check_delivery(NOW, settings).found == ()


def test_a_log_that_is_lost_is_told_and_not_made(settings: Settings, epoch: Epoch) -> None:
    """By a wrong URL the deployment would get a second log."""
    lost_log(settings)
    with pytest.raises(NoLogError, match=r"log.db is empty: .*made anew by `python -m vista repair"):
        check_delivery(NOW, settings)
    assert not list(settings.home.glob("log.db*"))


def test_a_region_that_catches_up_in_time_is_no_fault(settings: Settings, epoch: Epoch) -> None:
    not_followed(settings)

    def follow() -> None:
        with open_backends(settings) as backends:
            for name, store in backends.stores.items():
                drain(name, backends.log, store)

    worker = threading.Thread(target=follow)
    worker.start()
    report = check_delivery(CheckConfig(max_lag_s=120.0), settings)
    worker.join()
    assert (report.found, whole(report), actions(settings)) == ((), True, ["promote"])


def test_dead_letters_are_said_but_not_repaired_again_and_again(
    settings: Settings, epoch: Epoch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_backends(settings) as backends:
        offset = backends.stores["west"].state(0).offset
        backends.stores["west"].apply(0, offset, offset, [b"garbage"])
    assert check_delivery(NOW, settings).found == ()
    assert "region west keeps dead letters: 1" in caplog.text
    assert actions(settings) == ["promote"]


def test_what_cannot_be_mended_and_what_is_too_old_is_an_error(settings: Settings, epoch: Epoch) -> None:
    with pytest.raises(RegionNotReadyError, match=r"region east: its oldest summary is .* max_age_s 172,800"):
        check_delivery(CheckConfig(max_lag_s=0.0, max_age_s=172_800.0), settings)
    store = Path(settings.region_urls["west"].removeprefix("sqlite:///"))
    for file in store.parent.glob("west.db*"):
        file.unlink()
    store.write_bytes(b"no database" * 1_000)
    with pytest.raises(RegionNotReadyError, match=r"these are left:\nregion west"):
        check_delivery(NOW, settings)
