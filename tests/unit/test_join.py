"""The as-of join: the right epoch for every cut, and never one from the future."""

from pathlib import Path

import numpy as np
import pytest
from delivery_samples import BUCKETS, SEEDS, SPACES, WIDTH, publish_epoch, record, users_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vista.delivery.interfaces import Epoch
from vista.errors import EpochError, LeakError, SpaceMismatchError
from vista.summary.codec import decode_summary
from vista.summary.join import SummaryReader
from vista.summary.record import decode
from vista.summary.table import write_shard

USERS = 40


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> list[Epoch]:
    """As of 1,000, 2,000, 2,000 again and 3,000; numbers 1 .. 4."""
    home = tmp_path_factory.mktemp("epochs")
    times = (1_000, 2_000, 2_000, 3_000)
    return [
        publish_epoch(home, users=USERS, as_of_us=as_of_us, variant=variant)
        for variant, as_of_us in enumerate(times)
    ]


def one(reader: SummaryReader, user: int, cut_us: int) -> tuple[np.ndarray, bool, int]:
    summary_BSD, found_B, as_of_us_B = reader.lookup(np.array([user]), np.array([cut_us]))
    return summary_BSD[0], bool(found_B[0]), int(as_of_us_B[0])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(st.integers(-2, USERS + 2), st.integers(0, 4_000)), max_size=30),
    withdrawn=st.sets(st.integers(0, 3), max_size=3),
)
def test_every_row_gets_the_newest_epoch_before_its_cut(
    epochs: list[Epoch], asked: list[tuple[int, int]], withdrawn: set[int]
) -> None:
    marked = [one.model_copy(update={"withdrawn": i in withdrawn}) for i, one in enumerate(epochs)]
    reader = SummaryReader(marked)
    users, cuts = (np.array([pair[i] for pair in asked], np.int64) for i in (0, 1))
    summary_BSD, found_B, as_of_us_B = reader.lookup(users, cuts)
    assert summary_BSD.shape == (len(asked), SEEDS, WIDTH)
    for row, (user, cut_us) in enumerate(asked):
        usable = [epoch for epoch in marked if not epoch.withdrawn and epoch.as_of_us <= cut_us]
        if not usable or not 0 <= user < USERS:
            assert (found_B[row], as_of_us_B[row]) == (False, -1)
            assert not summary_BSD[row].any()
            continue
        epoch = max(usable, key=lambda epoch: (epoch.as_of_us, epoch.epoch))
        data = record(user, user, epoch=epoch.epoch, as_of_us=epoch.as_of_us, variant=epoch.epoch - 1)
        assert (found_B[row], as_of_us_B[row]) == (True, epoch.as_of_us)
        assert np.array_equal(summary_BSD[row], decode_summary(data)[1])


def test_a_cut_at_the_very_as_of_may_use_the_epoch(epochs: list[Epoch]) -> None:
    reader = SummaryReader(epochs)
    assert one(reader, 3, 999)[1:] == (False, -1)
    assert one(reader, 3, 1_000)[1:] == (True, 1_000)


def test_open_epochs_are_left_out_and_none_is_an_error(epochs: list[Epoch]) -> None:
    opened = epochs[3].model_copy(update={"published": False, "location": ""})
    assert one(SummaryReader([*epochs[:3], opened]), 3, 4_000)[2] == 2_000
    with pytest.raises(EpochError, match="none of 1 epochs is published"):
        SummaryReader([opened])


@pytest.mark.must_hold(13)
def test_several_spaces_are_a_typed_error(epochs: list[Epoch], tmp_path: Path) -> None:
    other = publish_epoch(tmp_path, space=SPACES[1], users=5)
    with pytest.raises(SpaceMismatchError, match="sample-a, sample-c"):
        SummaryReader([epochs[0], other])
    claimed = other.model_copy(update={"space": SPACES[0]})
    with pytest.raises(SpaceMismatchError, match="is not of sample-c"):
        SummaryReader([claimed])


def test_an_epoch_whose_model_saw_the_future_is_a_leak(epochs: list[Epoch]) -> None:
    late = epochs[0].model_copy(update={"trained_until_us": 1_001})
    with pytest.raises(LeakError, match="trained until 1001"):
        SummaryReader([late])
    assert SummaryReader([epochs[0].model_copy(update={"trained_until_us": 1_000})]).seeds == SEEDS


def test_a_summary_with_an_event_at_its_as_of_is_a_leak(epochs: list[Epoch], tmp_path: Path) -> None:
    """The records say as of 1,000 and newest event 999; an epoch as of 999 would hold an event of its cut."""
    damaged = tmp_path / "attempt"
    for bucket in range(BUCKETS):
        users = np.array(users_of(bucket, 3), np.int64)
        data = [leaking(user) for user in users.tolist()]
        write_shard(damaged, bucket, users, users, users, data)
    reader = SummaryReader([epochs[0].model_copy(update={"location": str(damaged)})])
    with pytest.raises(LeakError, match="with an event at 1000"):
        one(reader, users_of(0, 1)[0], 5_000)


@pytest.mark.must_hold(13)
def test_records_of_another_epoch_or_time_are_a_typed_error(epochs: list[Epoch]) -> None:
    for update in ({"epoch": 9}, {"as_of_us": 1_001, "trained_until_us": 0}):
        with pytest.raises(EpochError, match="the record holds"):
            SummaryReader([epochs[0].model_copy(update=update)])


def leaking(user: int) -> bytes:
    from dataclasses import replace

    from vista.summary.record import encode

    return encode(replace(decode(record(user)), event_time_us=1_000))
