"""What every store of a region does, whatever is behind its URL."""

import multiprocessing
import os
import random
import struct
from collections.abc import Callable
from contextlib import closing

import google_crc32c
import pytest
from delivery_samples import BUCKETS, SPACES, record, tombstone, users_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import LETTERS_AT_ONCE, Release, Store
from vista.delivery.store import open_store
from vista.errors import BackendError
from vista.summary.record import inspect, keys_digest, space_id

SPACE = SPACES[0]
FORK = multiprocessing.get_context("fork")  # a new interpreter per process costs seconds


def test_a_bucket_that_was_never_written_is_empty(store: Store) -> None:
    state = store.state(3)
    assert (state.offset, state.release, dict(state.floors), dict(state.epochs)) == (0, None, {}, {})
    assert state.free_bytes > 0
    assert store.get_many(SPACE, 1, users_of(3, 2)) == [None, None]


def test_apply_moves_offset_and_records_together_and_refuses_any_other_offset(store: Store) -> None:
    user, other = users_of(1, 2)
    assert store.apply(1, 0, 5, [record(user)]).offset == 5
    refused = store.apply(1, 0, 9, [record(other), record(user, 7)])
    assert (refused.accepted, refused.offset, refused.written) == (False, 5, 0)
    ahead = store.apply(1, 6, 9, [record(other)])
    assert (ahead.accepted, ahead.offset) == (False, 5)
    assert store.get_many(SPACE, 1, [user, other]) == [record(user), None]
    assert store.state(0).offset == 0


def test_a_refill_leaves_the_offset_and_a_repair_sets_it_even_back(store: Store) -> None:
    """What a refill from the table needs: records without a move in the log, then the log's own start."""
    user, other = users_of(1, 2)
    store.apply(1, 0, 50, [record(user)])
    refilled = store.apply(1, 50, 50, [record(other), barrier(SPACE, 1)])
    assert (refilled.accepted, refilled.offset, refilled.written) == (True, 50, 1)
    back = store.apply(1, 50, 3, [])
    assert (back.accepted, back.offset, store.state(1).offset) == (True, 3, 3)
    assert store.get_many(SPACE, 1, [user, other]) == [record(user), record(other)]


def test_the_offset_is_of_one_log_and_another_one_is_refused(store: Store) -> None:
    user, other = users_of(1, 2)
    assert store.apply(1, 0, 5, [record(user)]).accepted
    assert store.state(1).log == "", "nobody has said"
    assert store.apply(1, 5, 6, [], "one").accepted
    assert store.state(1).log == "one"
    refused = store.apply(1, 6, 7, [record(other), barrier(SPACE, 1)], "another")
    assert (refused.accepted, refused.offset, refused.written) == (False, 6, 0)
    assert not store.apply(1, 6, 7, [barrier(SPACE, 1)], "another").accepted
    assert store.get_many(SPACE, 1, [user, other]) == [record(user), None]
    assert store.apply(1, 6, 6, [], "").accepted, "beside its worker"
    assert (store.state(1).offset, store.state(1).log, store.state(2).log) == (6, "one", "")
    assert not store.apply(1, 5, 0, [record(other)], "another", new_log=True).accepted
    assert store.apply(1, 6, 0, [record(other)], "another", new_log=True).accepted
    assert (store.state(1).offset, store.state(1).log) == (0, "another")
    assert store.apply(1, 0, 1, [], "another").accepted
    assert not store.apply(1, 1, 2, [], "one").accepted


def test_get_many_keeps_the_order_and_the_keys_apart(store: Store) -> None:
    first, second = users_of(2, 2)
    batch = [
        record(first, space=space, epoch=epoch, variant=epoch) for space in SPACES for epoch in (1, 2)
    ] + [record(second)]
    assert store.apply(2, 0, len(batch), batch).written == 5
    assert store.get_many(SPACE, 1, [second, 10**12, first]) == [
        record(second),
        None,
        record(first, variant=1),
    ]
    assert store.get_many(SPACES[1], 2, [first]) == [record(first, space=SPACES[1], epoch=2, variant=2)]
    assert store.get_many("sample-unknown", 1, [first]) == [None]
    assert store.get_many(SPACE, 3, [first]) == [None]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_largest_order_wins_whatever_the_order_of_arrival(store: Store, data: st.DataObject) -> None:
    offset = store.state(0).offset
    epoch = offset + 1  # an epoch of its own for every example
    users = users_of(0, 3)
    pool = [
        record(user, seq, epoch=epoch, variant=variant)
        for user in users
        for seq in (-1, 0, 5)
        for variant in (0, 1)
    ]
    pool.append(tombstone(users[0], 5, epoch=epoch))
    arrivals = [pool[i] for i in data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=30))]
    cuts = data.draw(st.lists(st.integers(0, len(arrivals)), max_size=4).map(sorted))
    for start, end in zip([0, *cuts], [*cuts, len(arrivals)], strict=True):
        assert store.apply(0, offset + start, offset + end, arrivals[start:end]).accepted
    for user in users:
        mine = [(inspect(one).order, one) for one in arrivals if inspect(one).user_id == user]
        wanted = max(mine)[1] if mine else None
        if wanted is not None and inspect(wanted).tombstone:
            wanted = None
        assert store.get_many(SPACE, epoch, [user]) == [wanted]


def test_equal_seq_with_other_bytes_is_a_conflict_and_the_larger_crc_wins(store: Store) -> None:
    (user,) = users_of(0, 1)
    low, high = sorted(
        (record(user, 4, variant=0), record(user, 4, variant=1)), key=lambda one: inspect(one).crc
    )
    applied = store.apply(0, 0, 1, [low])
    assert (applied.written, applied.conflicts) == (1, 0)
    applied = store.apply(0, 1, 2, [high])
    assert (applied.written, applied.older, applied.conflicts) == (1, 0, 1)
    applied = store.apply(0, 2, 3, [low])
    assert (applied.written, applied.older, applied.conflicts) == (0, 1, 1)
    applied = store.apply(0, 3, 4, [high])
    assert (applied.written, applied.older, applied.conflicts) == (0, 1, 0), "a mere duplicate is no conflict"
    assert store.get_many(SPACE, 1, [user]) == [high]


def test_a_tombstone_beats_a_summary_of_its_seq_and_a_newer_summary_beats_it(store: Store) -> None:
    (user,) = users_of(0, 1)
    store.apply(0, 0, 2, [tombstone(user, 5), record(user, 5)])
    assert store.get_many(SPACE, 1, [user]) == [None]
    store.apply(0, 2, 3, [record(user, 6)])
    assert store.get_many(SPACE, 1, [user]) == [record(user, 6)]


def test_bytes_that_are_no_record_of_the_bucket_are_kept_as_dead_letters(store: Store) -> None:
    (user,), (stranger,) = users_of(0, 1), users_of(1, 1)
    damaged = bytearray(record(user))
    damaged[70] ^= 1
    letters = [bytes(damaged), with_codec(record(user), 9), record(stranger), b"garbage", b""]
    applied = store.apply(0, 0, 6, [*letters, record(user)])
    assert (applied.accepted, applied.offset, applied.written, applied.dead_letters) == (True, 6, 1, 5)
    kept = store.dead_letters(0)
    assert [letter.data for letter in kept] == letters
    assert {letter.next_offset for letter in kept} == {6}
    for letter, word in zip(
        kept, ("crc32c", "codec 9", "belongs to bucket 1", "no record", "no record"), strict=True
    ):
        assert word in letter.reason
    assert store.dead_letters(1) == []
    assert store.get_many(SPACE, 1, [user, stranger]) == [record(user), None]
    assert store.delete_dead_letters(0, kept[1:3]) == 2
    assert store.delete_dead_letters(0, kept[2:4]) == 1, "one of them has been deleted before"
    assert store.delete_dead_letters(0, []) == 0
    assert store.dead_letters(0) == [kept[0], kept[4]]


def test_many_dead_letters_are_counted_and_read_some_at_a_time(store: Store) -> None:
    letters = [b"garbage %d" % number for number in range(LETTERS_AT_ONCE + 7)]
    store.apply(0, 0, 200, letters)
    store.apply(1, 0, 1, [b"another bucket's"])
    assert (store.count_dead_letters(0), store.count_dead_letters(2)) == (len(letters), 0)
    first = store.dead_letters(0)
    rest = store.dead_letters(0, first[-1])
    assert [letter.data for letter in first + rest] == letters
    assert len(first) == LETTERS_AT_ONCE
    store.delete_dead_letters(0, first)
    assert store.dead_letters(0, first[-1]) == rest
    assert store.dead_letters(0, rest[-1]) == []


def test_barrier_release_and_keys_are_in_the_state(store: Store) -> None:
    users = users_of(2, 3)
    release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
    store.apply(2, 0, 3, [record(user, as_of_us=1_000 + user) for user in users])
    before = store.state(2).epochs[space_id(SPACE), 1]
    assert (before.users, before.keys_digest, before.barrier) == (3, keys_digest(users), False)
    assert before.oldest_as_of_us == 1_000 + min(users)
    store.apply(2, 3, 5, [barrier(SPACE, 1), release_record(release)])
    state = store.state(2)
    assert state.epochs[space_id(SPACE), 1].barrier
    assert state.release == release
    later = release.model_copy(update={"id": "r-2", "previous": "r-1"})
    store.apply(2, 5, 6, [release_record(later)])
    assert store.state(2).release == later
    assert store.state(1).release is None


def test_the_barrier_of_an_epoch_without_users_in_the_bucket_counts(store: Store) -> None:
    store.apply(0, 0, 1, [barrier(SPACES[1], 3)])
    state = store.state(0).epochs[space_id(SPACES[1]), 3]
    assert (state.users, state.keys_digest, state.barrier) == (0, keys_digest([]), True)


def test_a_retired_epoch_is_gone_at_once_and_no_replay_brings_it_back(store: Store) -> None:
    (user,) = users_of(0, 1)
    history = [record(user, epoch=1), barrier(SPACE, 1), record(user, epoch=2), record(user, epoch=3)]
    store.apply(0, 0, 4, [*history])
    other_space = record(user, space=SPACES[1], epoch=1)
    applied = store.apply(0, 4, 6, [other_space, retirement(SPACE, 2)])
    assert applied.retirements == ((SPACE, 2),)
    wanted = [None, None, record(user, epoch=3)]
    assert [store.get_many(SPACE, epoch, [user])[0] for epoch in (1, 2, 3)] == wanted
    assert store.retire(SPACE, 2) == 2
    replayed = store.apply(0, 6, 10, history)
    assert (replayed.retired, replayed.written, replayed.older) == (3, 0, 1)
    assert [store.get_many(SPACE, epoch, [user])[0] for epoch in (1, 2, 3)] == wanted
    state = store.state(0)
    assert (dict(state.floors), set(state.epochs)) == (
        {SPACE: 3},
        {(space_id(SPACE), 3), (space_id(SPACES[1]), 1)},
    )
    store.apply(0, 10, 11, [retirement(SPACE, 1)])
    assert store.state(0).floors == {SPACE: 3}, "a floor never sinks"


def test_a_batch_is_taken_in_the_order_of_the_log(store: Store) -> None:
    first, second = users_of(0, 2)
    batch = [
        record(first),
        record(second, epoch=2),
        barrier(SPACE, 1),
        record(second),
        retirement(SPACE, 1),
        record(first, 5),
        barrier(SPACE, 1),
        record(first, epoch=2),
        record(first, 3, epoch=2),
        record(first, space=SPACES[1]),
    ]
    applied = store.apply(0, 0, len(batch), batch)
    assert (applied.written, applied.older, applied.retired) == (6, 0, 2)
    assert store.get_many(SPACE, 1, [first, second]) == [None, None]
    assert store.get_many(SPACE, 2, [first, second]) == [record(first, 3, epoch=2), record(second, epoch=2)]
    assert store.get_many(SPACES[1], 1, [first]) == [record(first, space=SPACES[1])]
    assert store.retire(SPACE, 1) == 2
    state = store.state(0)
    assert set(state.epochs) == {(space_id(SPACE), 2), (space_id(SPACES[1]), 1)}
    assert state.epochs[space_id(SPACE), 2].keys_digest == keys_digest([first, second])


def test_retire_leaves_buckets_alone_that_the_log_has_not_told(store: Store) -> None:
    (here,), (there,) = users_of(0, 1), users_of(1, 1)
    store.apply(0, 0, 2, [record(here), retirement(SPACE, 1)])
    store.apply(1, 0, 1, [record(there)])
    assert store.retire(SPACE, 1) == 1
    assert store.get_many(SPACE, 1, [here, there]) == [None, record(there)]


def test_retire_of_one_bucket_leaves_the_others_alone(store: Store) -> None:
    for bucket in (1, 2):
        store.apply(bucket, 0, 3, [*map(record, users_of(bucket, 2)), retirement(SPACE, 1)])
    assert store.retire(SPACE, 1, bucket=1) == 2
    assert store.retire(SPACE, 1, at_most=1, bucket=1) == 0
    assert store.retire(SPACE, 1) == 2


def test_retire_deletes_more_than_a_slice_and_ends_when_told(store: Store) -> None:
    users = users_of(0, 2_300)
    store.apply(0, 0, 2_300, [tombstone(user, 0) for user in users])
    store.apply(0, 2_300, 2_301, [retirement(SPACE, 1)])
    assert store.retire(SPACE, 1, at_most=1) == 1_000
    assert store.retire(SPACE, 1, at_most=1_001) == 1_300
    assert store.retire(SPACE, 1) == 0


def test_another_process_sees_what_was_applied_before_a_sudden_end(store_url: str) -> None:
    (user,) = users_of(0, 1)
    process = FORK.Process(target=apply_and_die, args=(store_url, record(user)))
    process.start()
    process.join()
    assert process.exitcode == 9
    store = open_store(store_url, BUCKETS)
    assert store.get_many(SPACE, 1, [user]) == [record(user)]
    assert store.state(0).offset == 1
    store.close()


def test_two_workers_of_one_bucket_apply_every_offset_once(store_url: str) -> None:
    users = users_of(0, 60)
    with FORK.Pool(2) as pool:
        written = pool.starmap(apply_all, [(store_url, users, seed) for seed in (1, 2)])
    store = open_store(store_url, BUCKETS)
    assert sum(written) == len(users)
    assert store.state(0).offset == len(users)
    assert store.get_many(SPACE, 1, users) == [record(user) for user in users]
    store.close()


def test_a_store_is_usable_after_a_fork_on_both_sides(store: Store) -> None:
    first, second, third = users_of(0, 3)
    store.apply(0, 0, 1, [record(first)])
    child = os.fork()
    if child == 0:
        try:
            done = store.apply(0, 1, 2, [record(second)]).accepted
        finally:
            os._exit(0 if done else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.apply(0, 2, 3, [record(third)]).accepted
    assert None not in store.get_many(SPACE, 1, [first, second, third])


def test_another_bucket_count_is_refused(store: Store, store_url: str) -> None:
    assert store.state(0).offset == 0
    store.get_many(SPACE, 1, [1])
    other = open_store(store_url, BUCKETS * 2)
    with pytest.raises(BackendError, match="has 4 buckets, this run has 8"):
        other.get_many(SPACE, 1, [1])


def test_another_bucket_count_is_refused_also_after_a_wipe(
    store: Store, store_url: str, wipe: Callable[[], None]
) -> None:
    """The count is gone with the rest; who had the store open keeps it again when it sees that."""
    (user,) = users_of(0, 1)
    store.apply(0, 0, 1, [record(user)])
    wipe()
    assert store.state(0).offset == 0
    with (
        closing(open_store(store_url, BUCKETS * 2)) as other,
        pytest.raises(BackendError, match="has 4 buckets, this run has 8"),
    ):
        other.get_many(SPACE, 1, [user])


def apply_and_die(url: str, data: bytes) -> None:
    open_store(url, BUCKETS).apply(0, 0, 1, [data])
    os._exit(9)


def apply_all(url: str, users: list[int], seed: int) -> int:
    """A worker: batches of random size from wherever the store says that the bucket is."""
    store, choice, offset, written = open_store(url, BUCKETS), random.Random(seed), 0, 0
    while offset < len(users):
        end = min(len(users), offset + choice.randint(1, 5))
        applied = store.apply(0, offset, end, [record(user) for user in users[offset:end]])
        offset, written = applied.offset, written + applied.written
    store.close()
    return written


def with_codec(data: bytes, codec: int) -> bytes:
    """The record with another codec number and a right checksum: from a newer writer."""
    header = bytearray(data[:60])
    header[6] = codec
    crc = google_crc32c.extend(google_crc32c.value(bytes(header)), data[64:])
    return bytes(header) + struct.pack("<I", crc) + data[64:]
