"""Reading summaries from the nearest whole region: fail-over, misses, regions that break and heal."""

from collections.abc import Iterator
from pathlib import Path

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
from vista.delivery.interfaces import Release, Store
from vista.delivery.reader import RegionReader
from vista.delivery.regions import open_regions
from vista.delivery.sqlite_store import SqliteStore
from vista.errors import SpaceMismatchError

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


def wanted(user: int) -> bytes:
    return record(user, user)


def change(store: Store, statement: str) -> None:
    assert isinstance(store, SqliteStore)
    with store._database.write() as connection:
        assert connection.execute(statement).rowcount > 0


def test_the_nearest_region_answers_in_the_order_of_the_question(stores: dict[str, Store]) -> None:
    reader = RegionReader(stores, RELEASE, BUCKETS)
    answers = reader.read([5, 3, 5])
    assert [answer.data for answer in answers] == [wanted(5), wanted(3), wanted(5)]
    assert {answer.region for answer in answers} == {"east"}
    assert reader.counts == {"nearest": 2, "unreachable": 0}
    assert reader.read([]) == []


def test_a_miss_in_a_whole_region_is_an_answer_and_counted(stores: dict[str, Store]) -> None:
    reader = RegionReader(stores, RELEASE, BUCKETS)
    (answer,) = reader.read([10**9])
    assert (answer.data, answer.region) == (None, None)
    assert answer.why == "region east holds no summary of this user"
    assert reader.counts["missed"] == 1


def test_a_region_that_does_not_hold_all_of_the_epoch_is_passed_over(stores: dict[str, Store]) -> None:
    change(stores["east"], "DELETE FROM barriers WHERE bucket = 2")
    reader = RegionReader(stores, RELEASE, BUCKETS)
    assert [answer.data for answer in reader.read(USERS)] == [wanted(user) for user in USERS]
    assert reader.counts["failed_over"] == len(USERS)


def test_a_region_wiped_after_it_was_found_whole_is_passed_over_at_once(stores: dict[str, Store]) -> None:
    reader = RegionReader(stores, RELEASE, BUCKETS)
    assert reader.read([1])[0].region == "east"
    for table in ("summaries", "barriers", "offsets"):
        change(stores["east"], f"DELETE FROM {table}")
    answers = reader.read(USERS)
    assert {answer.region for answer in answers} == {"west"}
    assert [answer.data for answer in answers] == [wanted(user) for user in USERS]


def test_a_whole_region_is_looked_at_again_beside_the_reads(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to a bucket that nobody reads is found out, though no read looks at it."""
    monkeypatch.setattr(reader_module, "CHECK_S", 0.01)
    reader = RegionReader(stores, RELEASE, BUCKETS)
    (asked,), other = users_of(1, 1), 2
    assert reader.read([asked])[0].region == "east"
    change(stores["east"], f"DELETE FROM barriers WHERE bucket = {other}")
    assert wait_until(lambda: reader.read([asked])[0].region == "west", 60.0)


def test_a_broken_region_is_passed_over_and_used_again_when_it_is_whole(
    stores: dict[str, Store], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "CHECK_S", 0.0)
    east = stores["east"]
    assert isinstance(east, SqliteStore)
    with east._database.write() as connection:
        connection.execute("ALTER TABLE summaries RENAME TO away")
    reader = RegionReader(stores, RELEASE, BUCKETS)
    assert reader.read([1])[0].region == "west"
    with east._database.write() as connection:
        connection.execute("ALTER TABLE away RENAME TO summaries")
    assert reader.read([1])[0].region == "east"


def test_damaged_bytes_fail_over_for_their_user_alone(stores: dict[str, Store]) -> None:
    change(stores["east"], "UPDATE summaries SET data = X'00' WHERE user_id = 3")
    answers = RegionReader(stores, RELEASE, BUCKETS).read([2, 3])
    assert [(answer.region, answer.data) for answer in answers] == [
        ("east", wanted(2)),
        ("west", wanted(3)),
    ]


def test_without_any_region_the_answer_says_why(stores: dict[str, Store]) -> None:
    for store in stores.values():
        change(store, "DELETE FROM barriers")
    reader = RegionReader(stores, RELEASE, BUCKETS)
    (answer,) = reader.read([1])
    assert answer.data is None
    assert answer.why == "; ".join(
        f"region {name}: it does not hold all of epoch 1 of {SPACE}" for name in ("east", "west")
    )
    assert reader.counts["unreachable"] == 1


@pytest.mark.must_hold(13)
def test_another_users_record_is_an_error_and_never_an_answer(stores: dict[str, Store]) -> None:
    first, second = (user for user in users_of(1, 3)[1:])
    others = f"SELECT data FROM summaries WHERE user_id = {second}"
    change(stores["east"], f"UPDATE summaries SET data = ({others}) WHERE user_id = {first}")
    with pytest.raises(SpaceMismatchError, match=f"answered for user {first}.* the record of user {second}"):
        RegionReader(stores, RELEASE, BUCKETS).read([first])
