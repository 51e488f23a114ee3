"""A region that is cut off from its store: what its worker says, what the others do, how it catches up."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, content_digest, deliver_here, publish_epoch
from deployments import PATIENCE_S, Deployment, RegionProcess, Stream, region_process, until
from must_hold import Found

from vista.delivery.regions import Backends, open_backends

SPACE = SPACES[0]
USERS = 48
GAUGE_S, OTHERS_S = 1.0, 3.0
"""At full size: until the lag is right, and until the other regions pass what is in the log."""


@pytest.mark.must_hold(10)
def test_a_region_cut_off_says_so_catches_up_and_disturbs_no_other(
    deployment: Deployment,
    tmp_path: Path,
    found: Found,
    full_size: bool,
) -> None:
    """Must hold 10: a region cut off for 60 s: lag gauge right within 1 s of reconnection or scrape, the
    others unaffected, caught up in < 60 s. `slowest`: how long after the reconnection the gauge was right."""
    settings = deployment.settings
    epoch = publish_epoch(tmp_path, users=USERS, catalog_url=settings.catalog_url)
    deliver_here(tmp_path, epoch, settings)
    with ExitStack() as stack:
        backends = stack.enter_context(open_backends(settings))
        workers = {
            name: stack.enter_context(region_process(deployment, name, tmp_path))
            for name in settings.region_urls
        }
        for worker in workers.values():
            until(lambda worker=worker: worker.health()["ready"], "every region is ready")
        with Stream(backends.log, USERS, (1,), pause_s=0.02).running() as stream:
            passed_before = passed(backends, "west")
            with deployment.cut_off("west"):
                cut_s, ends_then = time.monotonic(), ends(backends)  # between these two it stands still
                while time.monotonic() - cut_s < (60 if full_size else 6):
                    until(
                        lambda: gauge_is_right(backends, workers["west"], passed_before, lambda: ends_then),
                        "the lag is right",
                        GAUGE_S if full_size else PATIENCE_S,
                    )
                    for name in ("east", "south"):
                        assert workers[name].health()["ready"], workers[name].health()
                        passes_what_is_there(backends, name, OTHERS_S if full_size else 30)
                    found.rounds += 1
                assert workers["west"].metric("vista_lag_records") > 0
                assert workers["west"].metric("vista_lag_seconds") > (50 if full_size else 3)
            connected_s = time.monotonic()
            until(
                lambda: gauge_is_right(
                    backends, workers["west"], passed(backends, "west"), lambda: passed(backends, "west")
                ),
                "the lag is right again",
            )
            found.slowest_s = round(time.monotonic() - connected_s, 3)
            assert not full_size or found.slowest_s < GAUGE_S, "the gauge after the reconnection"
            passes_what_is_there(backends, "west", 60)
        assert stream.sent > 0
        for name, worker in workers.items():
            until(
                lambda name=name: passed(backends, name) == ends(backends), "the region is at the log's end"
            )
            until(lambda worker=worker: worker.metric("vista_lag_records") == 0, "and says so")
            worker.stop()
        found.lost = sum(
            backends.stores[name].get_many(SPACE, 1, [user]) != [data]
            for name in workers
            for (_, user), data in stream.newest.items()
        )
        digests = {content_digest(store, range(USERS), [(SPACE, 1)]) for store in backends.stores.values()}
    assert (found.lost, len(digests)) == (0, 1)


def gauge_is_right(
    backends: Backends, worker: RegionProcess, passed_low: int, passed_high: Callable[[], int]
) -> bool:
    """Whether the gauge is the log's ends minus what the region has passed, which is known up to two bounds.

    It may be a second old, in which the stream brings at most 50 records.
    """
    ends_before = ends(backends)
    shown = worker.metric("vista_lag_records")
    return ends_before - 50 - passed_high() <= shown <= ends(backends) - passed_low


def passed(backends: Backends, region: str) -> int:
    """Records of the log that the region's store has passed."""
    return sum(backends.stores[region].state(bucket).offset for bucket in range(BUCKETS))


def ends(backends: Backends) -> int:
    return sum(backends.log.bounds(bucket)[1] for bucket in range(BUCKETS))


def passes_what_is_there(backends: Backends, region: str, seconds: float) -> None:
    """The region gets past where the log ends now."""
    wanted = [backends.log.bounds(bucket)[1] for bucket in range(BUCKETS)]
    store = backends.stores[region]
    until(
        lambda: all(store.state(bucket).offset >= wanted[bucket] for bucket in range(BUCKETS)),
        f"{region} passes what is in the log now",
        seconds,
    )
