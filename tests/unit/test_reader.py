"""Reading summaries from the nearest whole region: fail-over, misses, regions that break and heal."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    deliver_here,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from infra.processes import wait_until
from vista.config import Settings
from vista.delivery import reader as reader_module
from vista.delivery.interfaces import BucketState, Release, Store
from vista.delivery.reader import RegionReader
from vista.delivery.regions import open_regions
from vista.delivery.sqlite_store import SqliteStore
from vista.errors import BackendError, SpaceMismatchError
from vista.summary.record import space_id

SPACE = SPACES[0]
RELEASE = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
USERS = list(range(20))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_of(tmp_path)
    deliver_here(tmp_path, publish_epoch(tmp_path, users=40), settings)
    return settings


@pytest.fixture
def stores(settings: Settings) -> Iterator[dict[str, Store]]:
    with open_regions(settings, BUCKETS) as opened:
        yield opened


@pytest.fixture
def reader(stores: dict[str, Store]) -> Iterator[RegionReader]:
    with closing(RegionReader(stores, RELEASE, BUCKETS)) as opened:
        yield opened


def wanted(user: int) -> bytes:
    return record(user, user)


def _away(*_: object) -> None:
    raise BackendError("it is away")


def change(store: Store, statement: str) -> None:
    assert isinstance(store, SqliteStore)
    with store._database.write() as connection:
        assert connection.execute(statement).rowcount > 0


def test_the_nearest_region_answers_in_the_order_of_the_question(reader: RegionReader) -> None:
    answers = reader.read([5, 3, 5])
    assert [answer.data for answer in answers] == [wanted(5), wanted(3), wanted(5)]
    assert {answer.region for answer in answers} == {"east"}
    assert reader.counts == {"nearest": 2, "unreachable": 0}
    assert reader.read([]) == []


def test_a_miss_in_a_whole_region_is_an_answer_and_counted(reader: RegionReader) -> None:
    (answer,) = reader.read([10**9])
    assert (answer.data, answer.region) == (None, None)
    assert answer.why == "region east holds no summary of this user"
    assert reader.counts["missed"] == 1


def test_misses_cost_one_look_for_each_of_their_buckets(
    reader: RegionReader, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CHECK_S", 600.0)
    reader.read([1])
    looks: list[tuple[int, bool]] = []
    state = stores["east"].state

    def counted(bucket: int, *, reading: bool = False) -> BucketState:
        looks.append((bucket, reading))
        return state(bucket, reading=reading)

    monkeypatch.setattr(stores["east"], "state", counted)
    cold = [user for bucket in (1, 3) for user in users_of(bucket, 100)[50:]]
    reader.read(cold)
    assert reader.counts["missed"] == len(cold) == 100
    assert looks == [(1, True), (3, True)], "with a reader's patience"


def test_a_region_that_does_not_hold_all_of_the_epoch_is_passed_over(
    reader: RegionReader, stores: dict[str, Store]
) -> None:
    change(stores["east"], "DELETE FROM barriers WHERE bucket = 2")
    assert [answer.data for answer in reader.read(USERS)] == [wanted(user) for user in USERS]
    assert reader.counts["failed_over"] == len(USERS)


def test_a_region_wiped_after_it_was_found_whole_is_passed_over_at_once(
    reader: RegionReader, stores: dict[str, Store]
) -> None:
    assert reader.read([1])[0].region == "east"
    for table in ("summaries", "barriers", "offsets"):
        change(stores["east"], f"DELETE FROM {table}")
    answers = reader.read(USERS)
    assert {answer.region for answer in answers} == {"west"}
    assert [answer.data for answer in answers] == [wanted(user) for user in USERS]


def test_a_whole_region_is_looked_at_again_beside_the_reads(
    reader: RegionReader, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to a bucket that nobody reads is found out, though no read looks at it."""
    monkeypatch.setattr(reader_module, "CHECK_S", 0.01)
    (asked,), other = users_of(1, 1), 2
    assert reader.read([asked])[0].region == "east"
    change(stores["east"], f"DELETE FROM barriers WHERE bucket = {other}")
    assert wait_until(lambda: reader.read([asked])[0].region == "west", 60.0)


def test_a_broken_region_is_passed_over_and_used_again_when_it_is_whole(
    reader: RegionReader, stores: dict[str, Store], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CHECK_S", 0.0)
    east = stores["east"]
    assert isinstance(east, SqliteStore)
    with east._database.write() as connection:
        connection.execute("ALTER TABLE summaries RENAME TO away")
    assert reader.read([1])[0].region == "west"
    with east._database.write() as connection:
        connection.execute("ALTER TABLE away RENAME TO summaries")
    assert wait_until(lambda: reader.read([1])[0].region == "east", 60.0)


def test_no_read_waits_for_a_region_that_was_away_and_stays_away(
    reader: RegionReader, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a server that is away takes seconds."""
    monkeypatch.setattr(reader_module, "CHECK_S", 0.0)
    looks, back = Event(), Event()

    def away(bucket: int) -> BucketState:
        if reader.counts:
            looks.set()
            assert back.wait(60.0)
        raise BackendError("it is away")

    monkeypatch.setattr(stores["east"], "state", away)
    reader.read([1])
    reader.read([1])
    assert looks.wait(60.0), "it is looked at"
    assert [answer.region for answer in reader.read([1, 2])] == ["west", "west"]
    back.set()


def test_a_region_that_nobody_read_for_long_is_looked_at_before_it_is_passed_over(
    reader: RegionReader, stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CHECK_S", 0.0)
    with monkeypatch.context() as broken:
        broken.setattr(stores["east"], "get_many", _away)
        assert reader.read([1])[0].region == "west"
    monkeypatch.setattr(reader_module, "FORGET_S", 0.0)
    assert reader.read([1])[0].region == "east"


def test_damaged_bytes_fail_over_for_their_user_alone(reader: RegionReader, stores: dict[str, Store]) -> None:
    change(stores["east"], "UPDATE summaries SET data = X'00' WHERE user_id = 3")
    answers = reader.read([2, 3])
    assert [(answer.region, answer.data) for answer in answers] == [
        ("east", wanted(2)),
        ("west", wanted(3)),
    ]


def test_without_any_region_the_answer_says_why(reader: RegionReader, stores: dict[str, Store]) -> None:
    for store in stores.values():
        change(store, "DELETE FROM barriers")
    (answer,) = reader.read([1])
    assert answer.data is None
    assert answer.why == "; ".join(
        f"region {name}: it does not hold all of epoch 1 of {SPACE}" for name in ("east", "west")
    )
    assert reader.counts["unreachable"] == 1


ASKED, OTHER = users_of(1, 3)[1:]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (record(OTHER, OTHER), (SPACE, 1, OTHER)),
        (record(ASKED, ASKED, epoch=2), (SPACE, 2, ASKED)),
        (record(ASKED, ASKED, space=SPACES[1]), (SPACES[1], 1, ASKED)),
    ],
    ids=["user", "epoch", "space"],
)
@pytest.mark.must_hold(13)
def test_the_record_of_another_user_epoch_or_space_is_an_error_and_never_an_answer(
    reader: RegionReader, stores: dict[str, Store], data: bytes, found: tuple[str, int, int]
) -> None:
    change(stores["east"], f"UPDATE summaries SET data = X'{data.hex()}' WHERE user_id = {ASKED}")
    asked, held = (
        f"user {user}, epoch {epoch} of space {space_id(space):016x}"
        for space, epoch, user in [(SPACE, 1, ASKED), found]
    )
    with pytest.raises(SpaceMismatchError, match=f"answered for {asked} with the record of {held}: empty"):
        reader.read([ASKED])
