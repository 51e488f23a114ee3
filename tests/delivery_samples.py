"""Records, epochs and back ends for the tests of summary and delivery."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.config import DataConfig, RefreshConfig, Settings
from vista.data.dataset import DatasetFile
from vista.data.files import bucket_file, checksum
from vista.data.schema import DatasetInfo, Windows, bucket_of
from vista.delivery.backfill import backfill
from vista.delivery.catalog import open_catalog
from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import Epoch, Log, Release, Store
from vista.delivery.log import open_log
from vista.delivery.publish import attempt_directory, commit, export_id
from vista.delivery.regions import open_regions
from vista.delivery.worker import drain
from vista.runs import RunDirectory, write_sealed
from vista.summary.codec import Codec, encode_summaries, quantise
from vista.summary.record import Record, decode, encode, space_id
from vista.summary.table import write_shard

if TYPE_CHECKING:
    from infra.hive import Metastore

BUCKETS = 4
SEEDS, WIDTH = 4, 8
SPACES = ("sample-c", "sample-a")
"""Their ids lie below and above 2**63."""

assert space_id(SPACES[0]) < 2**63 <= space_id(SPACES[1])


def record(
    user: int,
    seq: int = 0,
    *,
    space: str = SPACES[0],
    epoch: int = 1,
    as_of_us: int = 1_000,
    variant: int = 0,
) -> bytes:
    """A summary record; the same arguments give the same bytes, another `variant` others."""
    values = np.random.default_rng([user + 2**40, seq + 1, epoch, variant]).standard_normal((1, SEEDS, WIDTH))
    return encode_summaries(
        values.astype(np.float32), space_id=space_id(space), epoch=epoch, as_of_us=as_of_us,
        user_id_B=np.array([user]), seq_B=np.array([seq]), event_time_us_B=np.array([as_of_us - 1]),
        codec=Codec.INT8, zstd=True,
    )[0]  # fmt: skip


def tombstone(user: int, seq: int, *, space: str = SPACES[0], epoch: int = 1) -> bytes:
    return encode(Record(space_id=space_id(space), epoch=epoch, user_id=user, seq=seq, tombstone=True))


def users_of(bucket: int, count: int, buckets: int = BUCKETS) -> list[int]:
    """The first `count` users of a bucket, from -1 on: ids may be negative."""
    found: list[int] = []
    user = -1
    while len(found) < count:
        if bucket_of(user, buckets) == bucket:
            found.append(user)
        user += 1
    return found


def publish_epoch(
    home: Path,
    *,
    users: int = 40,
    space: str = SPACES[0],
    as_of_us: int = 1_000,
    variant: int = 0,
    catalog_url: str = "",
) -> Epoch:
    """Export and publish an epoch of the users 0 .. users - 1, by default through `home`/catalog.db."""
    with closing(open_catalog(catalog_url or f"sqlite:///{home}/catalog.db")) as catalog:
        epoch = catalog.open_epoch(
            space=space, export_id=export_id(space, f"checkpoint-{variant}", as_of_us, "int8"),
            as_of_us=as_of_us, trained_until_us=as_of_us - 10, checkpoint=f"checkpoint-{variant}",
            codec="int8", buckets=BUCKETS,
        )  # fmt: skip
        attempt = attempt_directory(home / "warehouse", epoch, "one")
        write_attempt(attempt, epoch, users, variant)
        return commit(catalog, epoch, attempt)


def write_attempt(attempt: Path | str, epoch: Epoch, users: int, variant: int = 0) -> None:
    """All shards of an epoch for the users 0 .. users - 1."""
    for bucket in range(epoch.buckets):
        mine = [user for user in range(users) if bucket_of(user, epoch.buckets) == bucket]
        ids = np.array(mine, np.int64)
        records = [
            record(user, user, space=epoch.space, epoch=epoch.epoch, as_of_us=epoch.as_of_us, variant=variant)
            for user in mine
        ]
        write_shard(attempt, bucket, ids, ids, ids * 0 + epoch.as_of_us - 1, records)


def fresh_database(metastore: "Metastore") -> str:
    """The URL of an empty catalog in Hive."""
    return f"hive://127.0.0.1:{metastore.port}/test_{uuid.uuid4().hex[:12]}"


def content_digest(store: Store, users: Iterable[int], epochs: Sequence[tuple[str, int]]) -> str:
    """What a region answers for these users, as one hash."""
    digest = hashlib.sha256()
    asked = list(users)
    for space, epoch in epochs:
        for user, data in zip(asked, store.get_many(space, epoch, asked), strict=True):
            digest.update(f"{space}/{epoch}/{user}:".encode() + (b"miss" if data is None else data))
    return digest.hexdigest()


def replay(log: Log, store: Store, bucket: int) -> None:
    """Apply everything that the log holds beyond the store's offset, in one batch."""
    offset = store.state(bucket).offset
    found = log.read(bucket, offset, 2**30)
    if found:
        assert store.apply(bucket, offset, found[-1][0] + 1, [data for _, data in found]).accepted


def golden_records() -> dict[str, Record]:
    """The records of tests/golden/records, by file name; docs/FORMAT.md quotes their bytes."""
    space = "generated-0a1b2c"
    values = np.array([[[0.5, -0.25, 1.0], [0.0, 0.0, 0.0]]], np.float32)
    common = {
        "space_id": space_id(space), "epoch": 7, "user_id": 42, "seq": 199, "as_of_us": 1_700_000_000_000_000,
        "event_time_us": 1_699_999_999_000_000,
    }  # fmt: skip
    release = Release(id="r-1", space=space, epoch=7, foundation="f", downstream="d")
    shape = {"seeds": 2, "width": 3}
    int8, bf16 = (quantise(values, codec).tobytes() for codec in (Codec.INT8, Codec.BF16))
    return {
        "int8": Record(**common, **shape, codec=Codec.INT8, payload=int8),
        "bf16": Record(**common, **shape, codec=Codec.BF16, payload=bf16),
        "int8_zstd": Record(
            **common, seeds=2, width=32, codec=Codec.INT8, zstd=True,
            payload=quantise(np.tile(values[:, :, :1], 32), Codec.INT8).tobytes(),
        ),
        "no_events": Record(
            space_id=space_id(space), epoch=7, user_id=-42, as_of_us=1_700_000_000_000_000, **shape,
            codec=Codec.INT8, payload=int8,
        ),
        "tombstone": Record(space_id=space_id(space), epoch=7, user_id=42, seq=200, tombstone=True),
        "barrier": decode_plain(barrier(space, 7)),
        "release": decode_plain(release_record(release)),
        "retire": decode_plain(retirement(space, 7)),
    }  # fmt: skip


def decode_plain(data: bytes) -> Record:
    """A record as it was before encoding: without what encoding adds."""
    return replace(decode(data), crc=0, raw_bytes=0)


def settings_of(home: Path, regions: Sequence[str] = ("east", "west")) -> Settings:
    """An embedded deployment below `home`."""
    return Settings(
        runs=home / "runs",
        home=home,
        catalog_url=f"sqlite:///{home}/catalog.db",
        log_url=f"sqlite:///{home}/log.db",
        region_urls={name: f"sqlite:///{home}/stores/{name}.db" for name in regions},
        warehouse=str(home / "warehouse"),
        mlflow_url="",
    )


def deliver_here(home: Path, epoch: Epoch, settings: Settings) -> None:
    """Bring an epoch to every region, in this process."""
    buckets = epoch.buckets
    with closing(open_log(settings.log_url, buckets)) as log, open_regions(settings, buckets) as stores:
        backfill(epoch, log, home / f"backfill-{epoch.space}-{epoch.epoch}.json")
        for name, store in stores.items():
            drain(name, log, store)


def keep_report(run: RunDirectory, stage: str, report: dict[str, object]) -> None:
    """Mark a stage as done."""
    write_sealed(run.path / "stages" / f"{stage}.json", {"seconds": 1.0, "report": report})


def finish_stages(settings: Settings, run_id: str, epoch: Epoch, *, gate: bool = True) -> RunDirectory:
    """A run whose other stages are done; if it has no data, its newest event is at 10,000,000 us."""
    run = RunDirectory.open(settings.runs, RefreshConfig(recipe="smoke", run_id=run_id))
    reports: dict[str, dict[str, object]] = {
        "export_summaries": {"space": epoch.space, "newest_epoch": epoch.epoch},
        "train_foundation": {"checkpoint": f"{run.path}/train/foundation"},
        "retrain_downstream": {
            "downstream": f"{run.path}/train/downstream",
            "champion": {"release": None},
            "gate": {"promote": gate, "reasons": ["better"] if gate else ["NE is worse", "coverage"]},
        },
    }
    for name, report in reports.items():
        keep_report(run, name, report)
    if not run.data.exists():
        write_events(run.data, [5, 10_000_000, 7])
    return run


def write_events(data: Path, times_us: Sequence[int]) -> None:
    """A prepared data set of which nothing but the times of its events can be read."""
    path = bucket_file(data, "events", 0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"event_time_us": pa.array(times_us, pa.int64())}), path, use_dictionary=False)
    info = DatasetInfo(
        name="times", digest="", clock="event_time", first_day=0, last_day=1, rows=len(times_us), users=1,
        items=1, candidates=0, rejects=0, duplicates=0, tasks=("label",), oracle_auc=None,
    )  # fmt: skip
    file = DatasetFile(
        info=info, data=DataConfig(source="generated", buckets=1), windows=Windows(first_day=0, k=1, n=1),
        origin_us=0, actions=(), context=(), dense=(), value_edges=(),
        checksums={path.relative_to(data).as_posix(): checksum(path)},
    )  # fmt: skip
    write_sealed(data / "dataset.json", file.model_dump(mode="json"))
