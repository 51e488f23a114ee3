"""What every log does, whatever is behind its URL."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing

import pytest
from delivery_samples import BUCKETS, SPACES, record, users_of

from vista.delivery.control import barrier, retirement
from vista.delivery.interfaces import Log, Subscription
from vista.delivery.log import open_log
from vista.errors import BackendError, InputError

FORK = multiprocessing.get_context("fork")  # a new interpreter per process costs seconds
WAIT_S = 60.0  # a group of Kafka that lost a member takes 6 s, on two busy cores three times as long


def test_what_is_appended_is_read_in_order_with_its_offsets(log: Log) -> None:
    assert log.partitions == BUCKETS
    assert log.bounds(2) == (0, 0)
    assert log.read(2, 0, 1_000) == []
    assert log.append(2, [b"a", b"b"]) == 2
    assert log.append(2, [b"c"]) == 3
    assert log.append(2, []) == 3
    assert log.read(2, 0, 1_000) == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert log.read(2, 2, 1_000) == [(2, b"c")]
    assert log.read(2, 3, 1_000) == []
    assert log.bounds(2) == (0, 3)
    assert log.bounds(1) == (0, 0)


def test_a_control_record_goes_behind_what_each_partition_holds(log: Log) -> None:
    log.append(1, [b"a"])
    log.broadcast([3, 1, 0], barrier(SPACES[0], 7))
    log.broadcast([], barrier(SPACES[0], 8))
    assert [log.bounds(partition)[1] for partition in range(BUCKETS)] == [1, 2, 0, 1]
    assert log.read(1, 0, 1_000) == [(0, b"a"), (1, barrier(SPACES[0], 7))]
    assert log.read(3, 0, 1_000) == [(0, barrier(SPACES[0], 7))]


def test_a_read_holds_at_most_max_bytes_but_at_least_one_record(log: Log) -> None:
    log.append(0, [b"x" * 100, b"y" * 100, b"z" * 10])
    assert [offset for offset, _ in log.read(0, 0, 200)] == [0, 1]
    assert [offset for offset, _ in log.read(0, 0, 199)] == [0]
    assert [offset for offset, _ in log.read(0, 0, 1)] == [0]
    assert [offset for offset, _ in log.read(0, 1, 110)] == [1, 2]


def test_a_partition_that_does_not_exist_is_refused(log: Log) -> None:
    calls: list[Callable[[], object]] = [
        lambda: log.append(BUCKETS, [b"a"]),
        lambda: log.read(-1, 0, 10),
        lambda: log.bounds(99),
        lambda: log.broadcast([0, BUCKETS], b"a"),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"the log has 0 \.\. 3"):
            call()


def test_another_partition_count_is_refused(log: Log, log_url: str) -> None:
    with pytest.raises(BackendError, match="has 4 buckets, this run has 5"):
        open_log(log_url, 5)
    reopened = open_log(log_url)
    assert reopened.partitions == BUCKETS
    reopened.close()


def test_a_log_that_was_never_made_is_not_made_by_reading(log_url: str) -> None:
    with pytest.raises(BackendError, match="is empty"):
        open_log(log_url)


def test_a_log_that_is_made_anew_is_another_one(log: Log, log_url: str, lose_log: Callable[[], None]) -> None:
    log.append(0, [b"a"])
    first = log.identity()
    assert first
    with closing(open_log(log_url)) as again:
        assert again.identity() == first
    lose_log()
    with closing(open_log(log_url, BUCKETS)) as other:
        second = other.identity()
        assert second not in ("", first)
        time.sleep(1.1)
        assert log.identity() == second, "who has had it open learns it"


def test_concurrent_appenders_lose_nothing_and_keep_their_own_order(log: Log, log_url: str) -> None:
    with FORK.Pool(4) as pool:
        ends = pool.starmap(append_many, [(log_url, writer) for writer in range(4)])
    found = read_all(log, 1)
    assert [offset for offset, _ in found] == list(range(4 * 60))
    assert max(max(one) for one in ends) == log.bounds(1)[1] == 4 * 60
    for writer in range(4):
        mine = [int(data.split(b":")[1]) for _, data in found if data.startswith(b"%d:" % writer)]
        assert mine == list(range(60))


def test_an_acknowledged_append_outlives_a_kill(log: Log, log_url: str) -> None:
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=append_for_ever, args=(log_url, writer))
    process.start()
    acknowledged = 0
    while acknowledged < 20:
        acknowledged = reader.recv()
    process.kill()
    process.join()
    while reader.poll():
        acknowledged = reader.recv()
    after = log.append(0, [b"-1"])
    found = dict(read_all(log, 0))
    assert found.pop(after - 1) == b"-1"
    numbers = [int(data) for data in found.values()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acknowledged


def test_a_retirement_takes_nothing_else_away_and_offsets_stay(log: Log) -> None:
    (user,) = users_of(3, 1)
    gone = [record(user, epoch=1), record(user, epoch=2)]
    kept = {1: record(user, epoch=3), 3: record(user, space=SPACES[1], epoch=1), 4: b"no record"}
    kept |= {5: barrier(SPACES[0], 2), 6: retirement(SPACES[0], 2)}
    log.append(3, [gone[0], kept[1], gone[1], kept[3], kept[4], kept[5]])
    log.append(2, [record(users_of(2, 1)[0])])
    assert log.append(3, [kept[6]]) == 7
    found = dict(read_all(log, 3))
    assert {offset: found.pop(offset) for offset in kept} == kept
    assert found.items() <= {0: gone[0], 2: gone[1]}.items()  # when, is the log's own affair
    assert log.bounds(3) == (0, 7)
    assert len(read_all(log, 2)) == 1


def test_a_read_may_begin_anywhere_and_again(log: Log) -> None:
    sent = [b"%d:" % number * 500 for number in range(200)]
    for partition in range(BUCKETS):
        log.append(partition, sent)
    for start in (150, 0, 199, 73, 73):
        for partition in range(BUCKETS):
            assert read_all(log, partition, start) == list(enumerate(sent))[start:]


def read_all(log: Log, partition: int, offset: int = 0) -> list[tuple[int, bytes]]:
    """From `offset` to where the partition ends now; a read may hold less than there is."""
    found: list[tuple[int, bytes]] = []
    while some := log.read(partition, offset, 20_000):
        found += some
        offset = some[-1][0] + 1
    return found


class Member:
    """A worker of a region, as far as membership goes."""

    def __init__(self, log: Log, region: str) -> None:
        self.buckets: set[int] = set()
        self.subscription: Subscription = log.subscribe(region, self.assigned, self.revoked)

    def assigned(self, buckets: Iterable[int]) -> None:
        taken = set(buckets)
        assert not taken & self.buckets
        self.buckets |= taken

    def revoked(self, buckets: Iterable[int]) -> None:
        given = set(buckets)
        assert given <= self.buckets
        self.buckets -= given


def poll_until(members: list[Member], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, [member.buckets for member in members]
        for member in members:
            member.subscription.poll()
        time.sleep(0.02)


def test_live_workers_share_a_regions_buckets(log: Log) -> None:
    everything = set(range(BUCKETS))
    first = Member(log, "east")
    poll_until([first], lambda: first.buckets == everything)
    second, elsewhere = Member(log, "east"), Member(log, "west")

    def shared() -> bool:
        both = first.buckets, second.buckets
        return all(both) and set.union(*both) == everything and not set.intersection(*both)

    poll_until([first, second, elsewhere], lambda: shared() and elsewhere.buckets == everything)
    second.subscription.close()
    assert second.buckets == set()
    poll_until([first], lambda: first.buckets == everything)
    first.subscription.close()
    elsewhere.subscription.close()


def test_the_buckets_of_a_worker_that_was_killed_go_to_the_others(log: Log, log_url: str) -> None:
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=be_a_member, args=(log_url, writer))
    process.start()
    assert reader.recv() == "in"
    member = Member(log, "east")
    poll_until([member], lambda: 0 < len(member.buckets) < BUCKETS)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    poll_until([member], lambda: member.buckets == set(range(BUCKETS)))
    member.subscription.close()


def append_many(url: str, writer: int) -> list[int]:
    log = open_log(url, BUCKETS)
    return [log.append(1, [b"%d:%d" % (writer, n + i) for i in range(3)]) for n in range(0, 60, 3)]


def append_for_ever(url: str, writer: "multiprocessing.connection.Connection") -> None:
    log, number = open_log(url, BUCKETS), 0
    while True:
        number = log.append(0, [b"%d" % number])
        writer.send(number)


def be_a_member(url: str, writer: "multiprocessing.connection.Connection") -> None:
    member = Member(open_log(url, BUCKETS), "east")
    poll_until([member], lambda: bool(member.buckets))
    writer.send("in")
    poll_until([member], lambda: False)
