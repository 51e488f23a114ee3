"""What every catalog does, whatever is behind its URL."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, write_attempt

from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Catalog, Epoch, Release
from vista.delivery.publish import attempt_directory, commit, export_id
from vista.errors import EpochError, ReleaseConflictError

FORK = multiprocessing.get_context("fork")  # a new interpreter per process costs seconds
SPACE = SPACES[0]


@pytest.fixture(autouse=True)
def _locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metastore makes the places that it is told of."""
    monkeypatch.chdir(tmp_path)


def opened(catalog: Catalog, *, space: str = SPACE, as_of_us: int = 1_000) -> Epoch:
    return catalog.open_epoch(
        space=space, export_id=export_id(space, "digest", as_of_us, "int8"), as_of_us=as_of_us,
        trained_until_us=500, checkpoint="checkpoint", codec="int8", buckets=BUCKETS,
    )  # fmt: skip


def finished(epoch: Epoch, location: str = "attempt=one", rows: int = 7) -> Epoch:
    update = {"location": location, "rows": rows, "digest": "d", "published": True}
    return epoch.model_copy(update=update)


def audit(action: str = "promote") -> AuditLine:
    return AuditLine(time_us=1, actor="somebody", action=action, reason="why not", before="a", after="b")


def release(name: str, previous: str | None = None) -> Release:
    return Release(id=name, space=SPACE, epoch=1, foundation="f", downstream="d", previous=previous)


def test_an_export_gets_one_number_however_often_it_opens(catalog: Catalog) -> None:
    first, second = opened(catalog), opened(catalog, as_of_us=2_000)
    assert (first.epoch, second.epoch) == (1, 2)
    assert opened(catalog) == first
    assert opened(catalog, space=SPACES[1]).epoch == 1, "every space counts for itself"
    assert (first.published, first.withdrawn, first.as_of_us, first.trained_until_us) == (
        False,
        False,
        1_000,
        500,
    )
    assert catalog.list_epochs(SPACE) == [first, second]
    assert catalog.list_epochs("sample-none") == []


def test_the_first_attempt_that_is_published_stays(catalog: Catalog) -> None:
    epoch = opened(catalog)
    published = catalog.publish(finished(epoch))
    assert published == finished(epoch)
    assert catalog.publish(finished(epoch, "attempt=two")) == published
    assert catalog.list_epochs(SPACE) == [published]
    assert opened(catalog) == published


def test_another_export_or_another_number_of_rows_under_a_number_is_refused(catalog: Catalog) -> None:
    epoch = opened(catalog)
    with pytest.raises(EpochError, match="needs an epoch of its own"):
        catalog.publish(finished(epoch).model_copy(update={"export_id": "other"}))
    assert not catalog.list_epochs(SPACE)[0].published
    catalog.publish(finished(epoch))
    with pytest.raises(EpochError, match=r"with 7 rows; .* with 8 rows"):
        catalog.publish(finished(epoch, rows=8))
    with pytest.raises(EpochError, match="never opened"):
        catalog.publish(finished(epoch).model_copy(update={"epoch": 9}))


def test_withdrawing_is_for_ever_and_audited(catalog: Catalog) -> None:
    epoch = opened(catalog)
    with pytest.raises(EpochError, match="not published"):
        catalog.withdraw(SPACE, 1, audit("withdraw"))
    assert catalog.audit() == []
    catalog.publish(finished(epoch))
    catalog.withdraw(SPACE, 1, audit("withdraw"))
    catalog.withdraw(SPACE, 1, audit("withdraw"))
    assert catalog.publish(finished(epoch)).withdrawn
    assert catalog.list_epochs(SPACE)[0].withdrawn
    assert [line.action for line in catalog.audit()] == ["withdraw", "withdraw"]


def test_a_swap_needs_the_release_that_is_current(catalog: Catalog) -> None:
    assert catalog.releases() == []
    with pytest.raises(ReleaseConflictError, match="is None, not r-0"):
        catalog.swap_release("r-0", release("r-1"), audit())
    catalog.swap_release(None, release("r-1"), audit())
    for wrong in (None, "r-2"):
        with pytest.raises(ReleaseConflictError, match="current release is r-1"):
            catalog.swap_release(wrong, release("r-3", wrong), audit())
    catalog.swap_release("r-1", release("r-2", "r-1"), audit("rollback"))
    assert [one.id for one in catalog.releases()] == ["r-1", "r-2"]
    catalog.note(audit("retire"))
    assert [line.action for line in catalog.audit()] == ["promote", "rollback", "retire"], (
        "losers leave no line"
    )
    assert catalog.audit()[0] == audit()


def test_an_audit_line_is_kept_whole_whatever_it_says(catalog: Catalog) -> None:
    lines = [
        AuditLine(time_us=n, actor="\u00e9\u0142\u4e16", action="note", reason=reason, before="", after="")
        for n, reason in enumerate(["'\"\\\n\0\t%_;", "long " * 5_000, ""])
    ]
    for line in lines:
        catalog.note(line)
    assert catalog.audit() == lines


def test_of_many_swaps_at_once_one_wins(catalog: Catalog, catalog_url: str) -> None:
    with FORK.Pool(6) as pool:
        for round_ in range(8):
            expected = f"r-{round_ - 1}" if round_ else None
            won = pool.starmap(try_swap, [(catalog_url, expected, f"x-{round_}-{n}") for n in range(6)])
            assert sum(won) == 1
            current = catalog.releases()[-1]
            assert won[int(current.id.split("-")[2])]
            catalog.swap_release(current.id, release(f"r-{round_}", current.id), audit())
    assert len(catalog.releases()) == len(catalog.audit()) == 16


def test_threads_may_share_a_catalog(catalog: Catalog) -> None:
    """Whoever asks while another thread swaps never gets a history that is wrong from then on."""
    names = [f"r-{number}" for number in range(12)]
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            found = [one.id for one in catalog.releases()]
            assert found == names[: len(found)]

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            for before, name in zip([None, *names], names, strict=False):
                catalog.swap_release(before, release(name, before), audit())
                assert catalog.releases()[-1].id == name
        finally:
            done.set()
        for one in asking:
            one.result()


def test_of_many_committers_of_one_export_one_wins_and_nobody_sees_a_part(
    catalog: Catalog, catalog_url: str, tmp_path: Path
) -> None:
    """One winner among 8 committers in each of 6 rounds."""
    try_commit(catalog_url, tmp_path, 1_000, 0)  # imports, once for all children, what writing needs
    with FORK.Pool(8) as pool:
        for round_ in range(1, 7):
            as_of_us = 1_000 + round_
            results = pool.starmap_async(try_commit, [(catalog_url, tmp_path, as_of_us, n) for n in range(8)])
            while not results.ready():
                for epoch in catalog.list_epochs(SPACE):
                    assert_whole(epoch)
                results.wait(0.005)
            published = set(results.get())
            assert len(published) == 1
            winner = Path(published.pop())
            left = [path for path in winner.parent.iterdir() if path.is_dir()]
            assert left == [winner], "losers delete their attempt"
    epochs = catalog.list_epochs(SPACE)
    assert [epoch.epoch for epoch in epochs] == list(range(1, 8))
    assert all(epoch.published and epoch.rows == 24 for epoch in epochs)


def assert_whole(epoch: Epoch) -> None:
    """Open, or with all its shards."""
    if epoch.published:
        names = {path.name for path in Path(epoch.location).iterdir()}
        assert {f"bucket-{bucket:05d}.parquet" for bucket in range(BUCKETS)} <= names
        assert epoch.rows == 24


def try_swap(url: str, expected: str | None, name: str) -> bool:
    with closing(open_catalog(url)) as catalog:  # one that waits for the collector is carried over a fork
        try:
            catalog.swap_release(expected, release(name, expected), audit())
        except ReleaseConflictError:
            return False
    return True


def try_commit(url: str, home: Path, as_of_us: int, number: int) -> str:
    """One exporter of the export: opens the epoch, writes its own attempt, commits. Returns what won."""
    with closing(open_catalog(url)) as catalog:
        epoch = opened(catalog, as_of_us=as_of_us)
        attempt = attempt_directory(home / "warehouse", epoch, f"{number}")
        write_attempt(attempt, epoch, users=24)
        return commit(catalog, epoch, attempt).location
