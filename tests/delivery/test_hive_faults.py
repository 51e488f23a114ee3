"""Exporters that race, and exporters, committers and the metastore killed: readers see old or new.

A job here is what a refresh does to a catalog: open an epoch, write an attempt, commit it, make it the
release, withdraw the epoch before. Its moments are before and after each file and each call to the metastore.
"""

import itertools
import multiprocessing
import os
import random
import signal
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from delivery_samples import SPACES, fresh_database, write_attempt
from hive_sql import open_epoch, session
from lossy_link import lossy_link
from must_hold import Found

from infra.hive import HiveServer, Metastore
from infra.processes import wait_until
from vista.delivery.catalog import open_catalog
from vista.delivery.hive_thrift import Metastore as Client
from vista.delivery.interfaces import AuditLine, Catalog, Epoch, Release
from vista.delivery.publish import attempt_directory, commit
from vista.errors import BackendError, ReleaseConflictError
from vista.summary import table
from vista.summary.table import shards_of

FORK = multiprocessing.get_context("fork")  # a new interpreter per process costs seconds
SPACE, USERS, EXPORTERS = SPACES[0], 24, 8
ENDED_S = 120.0  # a job takes a second on an idle machine
SEED = 1


@dataclass(frozen=True)
class Fault:
    """The job, or the metastore, is killed at a moment; the job waits until the metastore is dead or not."""

    moment: int
    whom: str
    waits: bool


def export(catalog: Catalog, home: Path, number: int, name: str) -> Epoch:
    """One exporter and its committer."""
    epoch = open_epoch(catalog, number)
    attempt = attempt_directory(home, epoch, name)
    if not epoch.published:
        write_attempt(attempt, epoch, USERS)
    return commit(catalog, epoch, attempt)


def job(url: str, home: Path, number: int, name: str) -> None:
    """As a stage of a run: started again, it goes on."""
    with closing(open_catalog(url)) as catalog:
        epoch = export(catalog, home, number, name)
        releases = catalog.releases()
        if not releases or releases[-1].epoch != epoch.epoch:
            before = releases[-1].id if releases else None
            release = Release(
                id=f"r-{number}", space=SPACE, epoch=epoch.epoch, foundation="f", downstream="d"
            )
            catalog.swap_release(before, release, line("promote", release.id))
        for earlier in catalog.list_epochs(SPACE):
            if earlier.epoch < epoch.epoch and not earlier.withdrawn:
                catalog.withdraw(SPACE, earlier.epoch, line("withdraw", str(earlier.epoch)))


def line(action: str, after: str) -> AuditLine:
    return AuditLine(time_us=1, actor="test", action=action, reason="", before="", after=after)


# must hold 2


def race(url: str, home: Path, number: int, exporter: int) -> tuple[str, bool]:
    """What won, and whether it was this exporter's attempt."""
    with closing(open_catalog(url)) as catalog:
        won = export(catalog, home, number, f"{number}-{exporter}").location
    return won, won.endswith(f"attempt={number}-{exporter}")


def watch_tables(
    url: str, server: HiveServer, stop: Event, reads: "Synchronized[int]", partial: "Synchronized[int]"
) -> None:
    """Read the epochs by SQL, by thrift and by pyarrow until told to stop; count those that are not whole."""
    database = url.rpartition("/")[2]
    with session(server) as sql, closing(open_catalog(url)) as catalog:
        # the first exporter makes the tables
        assert wait_until(lambda: bool(catalog.list_epochs(SPACE)), ENDED_S)
        while not stop.is_set():
            found = sql.rows(f"SELECT epoch, count(*) FROM {database}.summaries GROUP BY epoch")
            counts = [rows for _, rows in found]
            for epoch in catalog.list_epochs(SPACE):
                if epoch.published:
                    counts += [epoch.rows, ds.dataset(epoch.location, format="parquet").count_rows()]
            reads.value += len(counts)
            partial.value += sum(count != USERS for count in counts)


@pytest.mark.must_hold(2)
def test_of_eight_exporters_one_wins_and_nobody_reads_a_part(
    metastore: Metastore, hiveserver: HiveServer, tmp_path: Path, full_size: bool, found: Found
) -> None:
    """Must hold 2: 8 exporters x 20 rounds, one winner each, for readers by SQL, thrift and pyarrow."""
    url, rounds = fresh_database(metastore), 20 if full_size else 4
    open_catalog(url).close()
    stop, reads, partial = FORK.Event(), FORK.Value("q", 0), FORK.Value("q", 0)
    watched = (url, hiveserver, stop, reads, partial)
    watcher = FORK.Process(target=watch_tables, args=watched, daemon=True)
    watcher.start()
    with FORK.Pool(EXPORTERS) as pool:
        for number in range(1, rounds + 1):
            outcomes = pool.starmap(race, [(url, tmp_path, number, one) for one in range(EXPORTERS)])
            winners = [location for location, mine in outcomes if mine]
            found.rounds += 1
            found.add(lost=not winners, duplicated=max(0, len(winners) - 1))
            assert {location for location, _ in outcomes} == set(winners)
            assert [str(path) for path in Path(winners[0]).parent.iterdir()] == winners
        stop.set()
        watcher.join(ENDED_S)
    found.mixed = partial.value
    assert (watcher.exitcode, found.lost, found.duplicated, found.mixed) == (0, 0, 0, 0)
    assert reads.value > 0
    with closing(open_catalog(url)) as catalog:
        assert [epoch.epoch for epoch in catalog.list_epochs(SPACE)] == [*range(1, rounds + 1)]


# must hold 3


@pytest.mark.must_hold(3)
@pytest.mark.parametrize("call", ["add_partition", "alter_table", "alter_partition", "create_table"])
def test_what_was_done_but_not_answered_is_done_once(
    metastore: Metastore, tmp_path: Path, call: str, found: Found
) -> None:
    """The first change of a kind is done, its answer is lost; the catalog finds out and goes on."""
    url = fresh_database(metastore)
    if call != "create_table":
        open_catalog(url).close()
    with lossy_link(metastore.port, call.encode()) as link:
        behind = url.replace(f":{metastore.port}/", f":{link.port}/")
        for number in (1, 2):
            job(behind, tmp_path, number, "one")
        assert link.lost == 1
    with closing(open_catalog(url)) as catalog:
        check_converged(catalog, 2, found)
    found.rounds = 1
    assert (found.lost, found.duplicated) == (0, 0)


def at_moments(reach: Callable[[int], None]) -> None:
    """In a process of its own: call `reach` with the number of each moment."""
    numbers = itertools.count()

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            reach(next(numbers))
            result = function(*arguments)
            reach(next(numbers))
            return result

        return noted

    Client._request = around(Client._request)  # type: ignore[method-assign]
    table.written = around(table.written)  # type: ignore[assignment]


def faulty_job(url: str, home: Path, number: int, fault: Fault | None, parent: Connection) -> None:
    """The job, with a fault. Sends the number of moments there were."""
    moments = 0

    def reach(moment: int) -> None:
        nonlocal moments
        moments = moment + 1
        if fault is None or moment != fault.moment:
            return
        if fault.whom == "job":
            os.kill(os.getpid(), signal.SIGKILL)
        parent.send("kill the metastore")
        if fault.waits:
            parent.recv()

    at_moments(reach)
    try:
        job(url, home, number, f"{number}-{uuid.uuid4().hex}")
    except (BackendError, ReleaseConflictError):
        os._exit(1)  # as a stage that failed: it is run again
    parent.send(moments)


def run_faulty(metastore: Metastore, url: str, home: Path, number: int, fault: Fault | None) -> int | None:
    """Run the job with its fault to its end; the number of its moments, or None if it failed."""
    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=faulty_job, args=(url, home, number, fault, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        said = ours.recv()
        if said == "kill the metastore":
            metastore.server.kill()
            if fault is not None and fault.waits:
                ours.send("it is dead")
            metastore.server.start()
            metastore.server.wait()
            said = ours.recv()
    except EOFError:
        said = None
    child.join(ENDED_S)
    return said


def watch_catalog(url: str, stop: Event, reads: "Synchronized[int]", mixed: "Synchronized[int]") -> None:
    """Read releases, epochs, manifests and Parquet until told to stop; count what is neither old nor new."""
    with closing(open_catalog(url)) as catalog:
        while not stop.is_set():
            try:
                released = [release.epoch for release in catalog.releases()]
                epochs = catalog.list_epochs(SPACE)
            except BackendError:  # the metastore is being killed
                continue
            usable = [epoch for epoch in epochs if epoch.published and not epoch.withdrawn]
            whole = all(
                sum(shard.rows for shard in shards_of(epoch.location, epoch.buckets))
                == ds.dataset(epoch.location, format="parquet").count_rows()
                == epoch.rows
                == USERS
                for epoch in usable
            )
            # an epoch is withdrawn after the next one serves, and epochs are read after releases
            current = not released or released[-1] in {epoch.epoch for epoch in epochs if epoch.published}
            in_order = released == [*range(1, len(released) + 1)]
            reads.value += 1
            mixed.value += not (whole and current and in_order and len(usable) <= 2)


def faults(count: int, moments: int) -> list[Fault]:
    """Seeded; a third kill the metastore, half of those in the middle of a call."""
    choice = random.Random(SEED)
    return [
        Fault(
            moment=choice.randrange(moments),
            whom="metastore" if place % 3 == 2 else "job",
            waits=place % 2 == 0,
        )
        for place in range(count)
    ]


@pytest.mark.must_hold(3)
def test_whatever_is_killed_readers_see_old_or_new_and_a_rerun_converges(
    metastore: Metastore, hiveserver: HiveServer, tmp_path: Path, full_size: bool, found: Found
) -> None:
    """Must hold 3: kill -9 of exporter, committer or metastore at 50 seeded points."""
    url, count = fresh_database(metastore), 50 if full_size else 6
    for number in (1, 2):
        moments = run_faulty(metastore, url, tmp_path, number, None)
    assert moments
    stop, reads, mixed = FORK.Event(), FORK.Value("q", 0), FORK.Value("q", 0)
    watcher = FORK.Process(target=watch_catalog, args=(url, stop, reads, mixed), daemon=True)
    watcher.start()
    database, failed = url.rpartition("/")[2], 0
    with closing(open_catalog(url)) as catalog, session(hiveserver) as sql:
        for number, fault in enumerate(faults(count, moments), start=3):
            failed += run_faulty(metastore, url, tmp_path, number, fault) is None
            seen = sql.rows(f"SELECT epoch, count(*) FROM {database}.usable_summaries GROUP BY epoch")
            found.add(mixed=sum(rows != USERS for _, rows in seen))
            assert {epoch for epoch, _ in seen} <= {number - 1, number}
            assert run_faulty(metastore, url, tmp_path, number, None), "the rerun ends"
            check_converged(catalog, number, found)
            found.rounds += 1
    stop.set()
    watcher.join(ENDED_S)
    found.add(mixed=mixed.value)
    assert (watcher.exitcode, found.lost, found.duplicated, found.mixed) == (0, 0, 0, 0)
    assert failed >= sum(fault.whom == "job" for fault in faults(count, moments))
    assert reads.value > 0


def check_converged(catalog: Catalog, number: int, found: Found) -> None:
    """One epoch per export, one release of it, one audit line per action."""
    epochs = catalog.list_epochs(SPACE)
    assert [epoch.epoch for epoch in epochs] == [*range(1, number + 1)]
    assert [epoch.epoch for epoch in epochs if not epoch.withdrawn] == [number]
    done = [(one.action, one.after) for one in catalog.audit()]
    expected = {("promote", f"r-{n}") for n in range(1, number + 1)}
    expected |= {("withdraw", str(n)) for n in range(1, number)}
    found.add(lost=len(expected - set(done)), duplicated=len(done) - len(set(done)))
    assert set(done) == expected
    assert [release.id for release in catalog.releases()] == [f"r-{n}" for n in range(1, number + 1)]
