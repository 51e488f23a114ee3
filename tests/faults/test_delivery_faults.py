"""Delivery under kill -9, zombies, wiped and restored stores.

Processes are real and killed for real; back ends are the embedded ones.
"""

import multiprocessing
import random
import shutil
import signal
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from delivery_samples import (
    BUCKETS,
    SPACES,
    content_digest,
    deliver_here,
    finish_stages,
    publish_epoch,
    record,
    settings_of,
    users_of,
)

from vista.config import RefreshConfig, Settings
from vista.delivery.backfill import backfill
from vista.delivery.control import barrier, retirement
from vista.delivery.deliver import check_ready, deliver_epoch
from vista.delivery.interfaces import Log, Store
from vista.delivery.log import open_log
from vista.delivery.regions import open_regions
from vista.delivery.store import open_store
from vista.delivery.worker import Worker, drain
from vista.summary.record import inspect
from vista.summary.table import shards_of

FORK = multiprocessing.get_context("fork")  # a new interpreter per process costs seconds
SPAWN = multiprocessing.get_context("spawn")  # of a process that starts processes
SPACE = SPACES[0]
USERS_PER_BUCKET = 150
KILLS = 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path, ("east", "west", "south"))


def stream(seed: int) -> dict[int, list[bytes]]:
    """Per bucket: a backfill, updates of some users, everything partly repeated and shuffled by `seed`."""
    choice = random.Random(seed)
    batches: dict[int, list[bytes]] = {}
    for bucket in range(BUCKETS):
        users = users_of(bucket, USERS_PER_BUCKET)
        records = [record(user) for user in users]
        records += [record(user, seq) for user in users[::3] for seq in (3, 7)]
        records += [record(user, 7, variant=1) for user in users[::9]]  # conflicts: equal seq, other bytes
        records += choice.sample(records, len(records) // 3)
        choice.shuffle(records)
        batches[bucket] = records
    return batches


def wanted(batches: dict[int, list[bytes]]) -> dict[int, bytes]:
    """What every region must hold in the end, by user."""
    best: dict[int, bytes] = {}
    for records in batches.values():
        for data in records:
            user = inspect(data).user_id
            if user not in best or inspect(best[user]).order < inspect(data).order:
                best[user] = data
    return best


def assert_right(store: Store, batches: dict[int, list[bytes]]) -> None:
    best = wanted(batches)
    held = dict(zip(best, store.get_many(SPACE, 1, list(best)), strict=True))
    assert held == best


def fill(log: Log, batches: dict[int, list[bytes]]) -> None:
    for bucket, records in batches.items():
        for start in range(0, len(records), 40):
            log.append(bucket, records[start : start + 40])


def work_in_small_steps(log_url: str, store_url: str, seed: int, steps: Connection | None = None) -> None:
    """A worker whose batches are small, so that a kill falls anywhere; `steps` hears of each."""
    log, store = open_log(log_url, BUCKETS), open_store(store_url, BUCKETS)
    choice = random.Random(seed)
    buckets = list(range(BUCKETS))
    while True:
        choice.shuffle(buckets)
        moved = False
        for bucket in buckets:
            offset = store.state(bucket).offset
            found = log.read(bucket, offset, choice.choice((1, 400, 1_000)))
            if found:
                if steps:
                    steps.send_bytes(b"s")
                store.apply(bucket, offset, found[-1][0] + 1, [data for _, data in found])
                moved = True
        if not moved:
            return


def test_a_worker_killed_at_many_points_loses_and_repeats_nothing(settings: Settings) -> None:
    batches, choice = stream(1), random.Random(2)
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        fill(log, batches)
        east = settings.log_url, settings.region_urls["east"]
        for attempt in range(KILLS):
            heard, steps = FORK.Pipe(duplex=False)
            process = FORK.Process(target=work_in_small_steps, args=(*east, attempt, steps))
            process.start()
            steps.close()
            with heard:
                for _ in range(choice.randint(1, 8)):
                    heard.recv_bytes()  # EOFError: the worker came to its end before all kills
                process.join(timeout=choice.uniform(0, 0.003))  # a kill before, in or after the write
                process.kill()
                process.join()
            assert process.exitcode == -signal.SIGKILL
        work_in_small_steps(*east, KILLS)
        assert_right(stores["east"], batches)
        assert [stores["east"].state(b).offset for b in range(BUCKETS)] == [
            log.bounds(b)[1] for b in range(BUCKETS)
        ]
        drain("west", log, stores["west"])
        users = list(wanted(batches))
        digests = {content_digest(stores[name], users, [(SPACE, 1)]) for name in ("east", "west")}
        assert len(digests) == 1


def test_zombies_and_second_workers_of_a_region_do_no_harm(settings: Settings) -> None:
    """Three workers of one region on all buckets at once, one of them always late, while records arrive."""
    batches = stream(3)
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        late = Worker("east", log, stores["east"])
        late.assign(range(BUCKETS))
        args = (settings.log_url, settings.region_urls["east"])
        workers = [FORK.Process(target=work_in_small_steps, args=(*args, seed)) for seed in (1, 2)]
        fill(log, batches)
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            late.step()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        while late.step():
            pass
        assert_right(stores["east"], batches)
        assert stores["east"].dead_letters(0) == []


def test_a_wiped_store_and_one_restored_from_an_old_copy_heal_by_replay(
    tmp_path: Path, settings: Settings
) -> None:
    first, second = (publish_epoch(tmp_path, as_of_us=1_000 * n, variant=n, users=60) for n in (1, 2))
    deliver_here(tmp_path, first, settings)
    east = tmp_path / "stores" / "east.db"
    shutil.copy(east, tmp_path / "old.db")
    deliver_here(tmp_path, second, settings)
    (tmp_path / "stores" / "west.db").unlink()
    shutil.copy(tmp_path / "old.db", east)
    shards = shards_of(Path(second.location), BUCKETS)
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        for name, store in stores.items():
            drain(name, log, store)
            check_ready(name, store, second, shards)
            check_ready(name, store, first, shards_of(Path(first.location), BUCKETS))
        epochs = [(SPACE, 1), (SPACE, 2)]
        assert len({content_digest(store, range(60), epochs) for store in stores.values()}) == 1


def test_a_retired_epoch_comes_back_by_no_replay(tmp_path: Path, settings: Settings) -> None:
    epoch = publish_epoch(tmp_path, users=60)
    deliver_here(tmp_path, epoch, settings)
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        for bucket in range(BUCKETS):
            log.append(bucket, [retirement(SPACE, epoch.epoch)])
        drain("east", log, stores["east"])
        backfill(epoch, log, tmp_path / "once-more.json")  # a late backfill, behind the retirement
        (tmp_path / "stores" / "west.db").unlink()
        for name, store in stores.items():
            report = drain(name, log, open_store(settings.region_urls[name], BUCKETS))
            assert report.retired == 60 + BUCKETS, "every record and every barrier"
            assert store.get_many(SPACE, epoch.epoch, range(60)) == [None] * 60
            assert all(not store.state(bucket).epochs for bucket in range(BUCKETS))


def deliver_quietly(settings: Settings) -> None:
    deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-1"), settings)


def progress(settings: Settings) -> int:
    """How far the delivery is: records in the log and records passed in every region."""
    if not Path(settings.log_url.removeprefix("sqlite:///")).exists():
        return 0
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        done = sum(log.bounds(bucket)[1] for bucket in range(BUCKETS))
        return done + sum(store.state(b).offset for store in stores.values() for b in range(BUCKETS))


def children(pid: int) -> set[int]:
    """All processes below `pid`."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    direct = {int(child) for child in path.read_text().split()} if path.exists() else set()
    return direct.union(*(children(child) for child in direct))


def is_running(pid: int) -> bool:
    """Not gone, and no zombie that only waits for somebody to read its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_stage_killed_at_seeded_points_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """kill -9 of the stage with its region processes; each rerun goes on; nothing is left running."""
    users, settings = 800, settings_of(tmp_path)
    epoch = publish_epoch(tmp_path, users=users)
    finish_stages(settings, "run-1", epoch)
    total = (users + BUCKETS) * (1 + len(settings.region_urls))
    choice, kills, below = random.Random(11), 0, 0
    for threshold in sorted(choice.randrange(total) for _ in range(3)):
        process = SPAWN.Process(target=deliver_quietly, args=(settings,))
        process.start()
        while progress(settings) <= threshold and process.is_alive():
            process.join(timeout=0.01)
        workers = children(process.pid or 0)
        kills += process.is_alive()
        process.kill()
        process.join()
        deadline = time.monotonic() + 30
        while running := [pid for pid in workers if is_running(pid)]:
            assert time.monotonic() < deadline, f"{running} outlived the stage"
            time.sleep(0.02)
        below += bool(workers)
    assert kills > 1, "the stage was too fast to be killed: the test tests nothing"
    assert below, "no kill found a region's process: the test does not show that they end"
    report = deliver_epoch(RefreshConfig(recipe="smoke", run_id="run-1"), settings)
    assert {(one.coverage, one.lag_records) for one in report.regions.values()} == {(1.0, 0)}
    with closing(open_log(settings.log_url, BUCKETS)) as log, open_regions(settings, BUCKETS) as stores:
        assert len({content_digest(store, range(users), [(SPACE, 1)]) for store in stores.values()}) == 1
        for bucket in range(BUCKETS):
            kept = [data for _, data in log.read(bucket, 0, 2**30)]
            assert kept.count(barrier(SPACE, 1)) <= 1 + kills
