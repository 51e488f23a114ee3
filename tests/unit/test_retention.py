"""Which files of the table are deleted, and when: after the grace period, and never under a job."""

from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import SPACES, publish_epoch, write_attempt

from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Catalog, Epoch
from vista.delivery.publish import attempt_directory, export_id
from vista.delivery.retention import GRACE_US, PIN_US, expire_space, now_us, pinned, sweep

SPACE = SPACES[0]


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    return tmp_path / "warehouse"


@pytest.fixture
def epoch(tmp_path: Path) -> Epoch:
    return publish_epoch(tmp_path)


def swept(warehouse: Path) -> list[str]:
    """The names of the attempts that a sweep deletes."""
    with closing(open_catalog(f"sqlite:///{warehouse.parent}/catalog.db")) as catalog:
        deleted = [Path(attempt) for attempt in sweep(catalog, warehouse)]
    assert not any(attempt.exists() for attempt in deleted)
    return [attempt.name for attempt in deleted]


def add_attempt(warehouse: Path, epoch: Epoch, name: str) -> Path:
    attempt = attempt_directory(warehouse, epoch, name)
    write_attempt(attempt, epoch, users=10)
    return Path(attempt)


def let_pass(warehouse: Path, time_us: int) -> None:
    """Make every mark of unused attempts older."""
    marks = [*warehouse.rglob("*.unused")]
    assert marks
    for mark in marks:
        mark.write_text(str(int(mark.read_text()) - time_us))


def withdraw(warehouse: Path, epoch: Epoch) -> None:
    line = AuditLine(time_us=1, actor="test", action="withdraw", reason="bad", before="", after="")
    with closing(open_catalog(f"sqlite:///{warehouse.parent}/catalog.db")) as catalog:
        catalog.withdraw(epoch.space, epoch.epoch, line)


def test_the_attempt_of_a_killed_loser_goes_after_the_grace_period(warehouse: Path, epoch: Epoch) -> None:
    late = add_attempt(warehouse, epoch, "late")
    assert swept(warehouse) == swept(warehouse) == []
    let_pass(warehouse, GRACE_US - 3_600_000_000)
    assert swept(warehouse) == []
    let_pass(warehouse, 3_600_000_000)
    assert swept(warehouse) == ["attempt=late"]
    assert [path.name for path in late.parent.iterdir()] == [Path(epoch.location).name], "no mark stays"
    assert swept(warehouse) == []


def test_a_withdrawn_epoch_goes_unless_a_job_reads_it(warehouse: Path, epoch: Epoch) -> None:
    with pinned([epoch]):
        withdraw(warehouse, epoch)
        assert swept(warehouse) == []
        let_pass(warehouse, GRACE_US)
        assert swept(warehouse) == []
    assert swept(warehouse) == ["attempt=one"]
    assert [*Path(epoch.location).parent.iterdir()] == []
    assert swept(warehouse) == []


def test_the_pin_of_a_killed_job_does_not_hold_for_ever(warehouse: Path, epoch: Epoch) -> None:
    withdraw(warehouse, epoch)
    assert swept(warehouse) == []
    let_pass(warehouse, GRACE_US)
    with pinned([epoch]):
        (pin,) = Path(epoch.location).parent.glob("pin=*")
        assert now_us() < int(pin.read_text()) <= now_us() + PIN_US
        assert swept(warehouse) == []
        pin.write_text(str(now_us() - 1))
        assert swept(warehouse) == ["attempt=one"]


def test_what_may_still_be_used_or_is_not_ours_stays(warehouse: Path, epoch: Epoch) -> None:
    """An open epoch's run may be resumed; a space that the catalog does not know may be another's."""
    with closing(open_catalog(f"sqlite:///{warehouse.parent}/catalog.db")) as catalog:
        still_open = open_one(catalog, as_of_us=2_000)
    add_attempt(warehouse, still_open, "begun")
    other = add_attempt(warehouse, epoch.model_copy(update={"space": "of-another-catalog"}), "one")
    add_attempt(warehouse, epoch, "late")
    assert swept(warehouse) == []
    let_pass(warehouse, GRACE_US)
    assert swept(warehouse) == ["attempt=late"]
    assert other.is_dir()


def test_the_same_warehouse_written_otherwise_is_the_same(tmp_path: Path, epoch: Epoch) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        for written in (f"{tmp_path}/warehouse/", f"{tmp_path}/./warehouse", f"file://{tmp_path}/warehouse"):
            assert sweep(catalog, written) == []
    assert [*tmp_path.rglob("*.unused")] == []
    assert Path(epoch.location).is_dir()


def test_a_warehouse_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        assert sweep(catalog, tmp_path / "nowhere") == []


def test_a_space_expires_as_a_whole_and_audited(tmp_path: Path) -> None:
    first, second = (publish_epoch(tmp_path, as_of_us=as_of_us) for as_of_us in (1_000, 2_000))
    other = publish_epoch(tmp_path, space=SPACES[1])
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        open_one(catalog, as_of_us=3_000)
        assert expire_space(catalog, SPACE, "clean_up", "old") == [first, second]
        assert expire_space(catalog, SPACE, "clean_up", "old") == []
        assert [(line.action, line.before) for line in catalog.audit()] == [
            ("expire", f"{SPACE}/1"),
            ("expire", f"{SPACE}/2"),
        ]
        assert [one.withdrawn for one in catalog.list_epochs(SPACE)] == [True, True, False]
        assert catalog.list_epochs(SPACES[1]) == [other]


def open_one(catalog: Catalog, as_of_us: int) -> Epoch:
    return catalog.open_epoch(
        space=SPACE, export_id=export_id(SPACE, "c", as_of_us, "int8"), as_of_us=as_of_us,
        trained_until_us=1, checkpoint="c", codec="int8", buckets=4,
    )  # fmt: skip
