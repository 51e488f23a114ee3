"""Regions that get the same records in other orders, beside a backfill, hold the same."""

import random
import threading
from contextlib import closing
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, content_digest, publish_epoch
from deployments import Deployment, until, update
from must_hold import Found
from region_threads import region_thread

from vista.data.schema import bucket_of
from vista.delivery.backfill import backfill
from vista.delivery.interfaces import Log, Store
from vista.delivery.log import open_log
from vista.delivery.regions import open_regions
from vista.delivery.verify import verify_region
from vista.summary.record import inspect

SPACE = SPACES[0]


@pytest.mark.must_hold(8)
def test_shuffled_and_repeated_streams_beside_a_backfill_give_identical_regions(
    deployment: Deployment,
    tmp_path: Path,
    found: Found,
    full_size: bool,
) -> None:
    """Must hold 8: shuffled, duplicated, backfill plus stream into 3 regions: identical digests. Each region
    has a log of its own, with an order of its own."""
    users = 6_000 if full_size else 240
    settings = deployment.settings
    epoch = publish_epoch(tmp_path, users=users, catalog_url=settings.catalog_url)
    # The table's own records have seq 0 .. users - 1.
    updates = [update(user, users + seq, 1) for user in range(0, users, 3) for seq in (1, 5, 9)]
    updates += [update(user, users + 5, 1) for user in range(0, users, 9)]  # again
    newest = {user: update(user, users + 9, 1) for user in range(0, users, 3)}
    digests = set()
    with open_regions(settings, BUCKETS) as stores:
        for seed, (name, store) in enumerate(stores.items()):
            with closing(open_log(deployment.new_log(name), BUCKETS)) as log, region_thread(name, log, store):
                streaming = threading.Thread(target=shuffled, args=(log, updates, random.Random(seed)))
                streaming.start()
                backfill(epoch, log, tmp_path / f"progress-{name}.json")
                streaming.join()
                until(lambda store=store, log=log: is_at_end(store, log), "the region is at its log's end")
                assert verify_region(name, store, log, [epoch], all_bytes=True).findings == ()
            held = dict(zip(newest, store.get_many(SPACE, 1, list(newest)), strict=True))
            found.add(lost=sum(held[user] != data for user, data in newest.items()))
            digests.add(content_digest(store, range(users), [(SPACE, 1)]))
            found.rounds += 1
    assert (len(digests), found.lost) == (1, 0)


def shuffled(log: Log, records: list[bytes], choice: random.Random) -> None:
    for data in choice.sample(records, len(records)):
        log.append(bucket_of(inspect(data).user_id, BUCKETS), [data] * choice.choice((1, 1, 2)))


def is_at_end(store: Store, log: Log) -> bool:
    return all(store.state(bucket).offset == log.bounds(bucket)[1] for bucket in range(BUCKETS))
