"""What `python -m vista capacity` says, against a real export on the embedded back ends, and up to 1 PB."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vista.__main__ import commands
from vista.config import DataConfig, GeneratedConfig, ModelConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.delivery.capacity import FILL, Capacity, CapacityConfig, capacity, size_class, store_bytes
from vista.delivery.deliver import STORE_OVERHEAD
from vista.delivery.log import open_log
from vista.delivery.store import open_store
from vista.delivery.worker import drain
from vista.errors import InputError
from vista.model.ranker import Ranker
from vista.summary.export import ExportedEpoch, export_bucket
from vista.summary.table import read_bucket

USERS, BUCKETS = 2_000, 4
MODEL = ModelConfig(width=64, heads=4, seeds=32, mlp=(16,), embedding_init=0.5)

CODEC_TOLERANCE = 0.03
"""A model's vectors are not quite Gaussian, so zstd shortens them otherwise than the sample's."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch of 2,000 users, exported, sent through the log and applied to a store."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    generated = GeneratedConfig(users=USERS, items=64, events_per_user=8, days=4)
    config = DataConfig(source="generated", buckets=BUCKETS, max_uih=16, generated=generated)
    prepare_dataset(config, home / "data", WindowConfig())
    dataset = Dataset.open(home / "data")
    torch.manual_seed(0)
    model = Ranker(MODEL, dataset.spec(dataset.day_start_us(4)), "vista").eval()
    epoch = ExportedEpoch(
        space="s", epoch=1, as_of_us=dataset.day_start_us(4), codec="int8", zstd=True, made_by="model"
    )
    with (
        closing(open_log(f"sqlite:///{home}/log.db", BUCKETS)) as log,
        closing(open_store(f"sqlite:///{home}/store.db", BUCKETS)) as store,
    ):
        for bucket in range(BUCKETS):
            export_bucket(model, 16, dataset, bucket, epoch, home / "table")
            for rows in read_bucket(home / "table", bucket):
                log.append(bucket, rows.records)
        drain("east", log, store)
    return home


@pytest.fixture(scope="module")
def said() -> Capacity:
    config = {"users": USERS, "seeds": MODEL.seeds, "width": MODEL.width, "buckets": BUCKETS}
    once = {"table_epochs": 1, "log_epochs": 1, "updates_per_week": 0, "epochs_kept": 1, "replication": 1}
    return capacity(CapacityConfig(**config, **once))


def file_bytes(home: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in home.glob(pattern))


def test_the_table_takes_what_is_said(home: Path, said: Capacity) -> None:
    found = file_bytes(home, "table/*.parquet")
    assert said.table.total_bytes == pytest.approx(found, rel=CODEC_TOLERANCE)
    records = sum(
        len(data) for bucket in range(BUCKETS) for rows in read_bucket(home / "table", bucket)
        for data in rows.records
    )  # fmt: skip
    assert said.record_bytes * USERS == pytest.approx(records, rel=CODEC_TOLERANCE)
    # A file also has its schema, and its least and largest record: real ones are too long for that.
    without_records = found - records - USERS * (said.table.record_bytes - said.record_bytes)
    assert 0 < without_records < BUCKETS * 16_384


def test_the_embedded_store_stays_below_what_delivery_asks_for(home: Path, said: Capacity) -> None:
    """A page of 4 KiB holds one record of 2 to 4 KB, as these are: nothing takes more for its length."""
    found = file_bytes(home, "store.db*")
    assert said.record_bytes * USERS < found < STORE_OVERHEAD * said.record_bytes * USERS


def test_size_classes_are_those_that_were_measured() -> None:
    """Redis 7.0 on jemalloc: MEMORY USAGE of 30,800 bytes was 32,840, of 33,024 bytes 41,032; both with 72
    bytes for the key, its object and its entry."""
    for length, taken in ((30_800, 32_840), (33_024, 41_032)):
        assert size_class(length + 6) + 72 == taken
    assert store_bytes(32_762, 10**9, 1_024) + 8_192 == store_bytes(32_763, 10**9, 1_024)


def test_the_papers_petabyte() -> None:
    """Three billion users, three epochs, three regions with a replica each: 1.8 PB in memory."""
    found = capacity(CapacityConfig(users=3 * 10**9, node_memory_gib=1_024))
    assert 1.7e15 < 3 * found.store.total_bytes < 1.9e15
    assert found.store.machines is not None
    node_bytes = found.store.total_bytes / found.store.machines
    assert 0.9 * FILL * 2**40 < node_bytes <= FILL * 2**40
    assert found.log.machines is not None
    assert found.log.total_bytes / found.log.machines <= FILL * 8_192 * 2**30
    assert found.store.pieces == found.log.pieces == found.table.pieces
    assert found.store.pieces >= 16 * found.store.machines / found.config.store_copies


def test_totals_grow_with_what_multiplies_them() -> None:
    base = CapacityConfig(users=10**6, buckets=1_024, updates_per_week=0)
    one = capacity(base)
    twice = {
        "users": ("table", "log", "store"),
        "replication": ("table", "log"),
        "table_epochs": ("table",),
        "log_epochs": ("log",),
        "epochs_kept": ("store",),
        "store_copies": ("store",),
    }
    for name, places in twice.items():
        more = capacity(base.model_copy(update={name: 2 * getattr(base, name)}))
        for place in ("table", "log", "store"):
            ratio = getattr(more, place).total_bytes / getattr(one, place).total_bytes
            assert ratio == pytest.approx(2 if place in places else 1, rel=1e-3), (name, place)
    regions = capacity(base.model_copy(update={"regions": 6}))
    assert regions.total_bytes - one.total_bytes == 3 * one.store.total_bytes


def test_the_log_holds_every_streamed_update_of_a_week_under_every_live_epoch() -> None:
    base = CapacityConfig(users=10**6, buckets=1_024, updates_per_week=0)
    none, ten = capacity(base), capacity(base.model_copy(update={"updates_per_week": 10}))
    assert (none.log.records, ten.log.records) == (base.log_epochs, base.log_epochs + 2 * 10)
    assert ten.log.total_bytes / none.log.total_bytes == pytest.approx(28 / 8, rel=1e-6)
    assert (ten.table, ten.store) == (none.table, none.store), (
        "only the newest record of a user is kept there"
    )
    assert ten.log.machines is not None
    assert ten.log.total_bytes / ten.log.machines <= FILL * 8_192 * 2**30


def test_a_bucket_that_fits_no_node_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not fit a node of 1 GiB .*more buckets"):
        capacity(CapacityConfig(users=10**6, buckets=32, node_memory_gib=1))


def test_the_command_prints_a_table_or_json() -> None:
    arguments = ["capacity", "--users", "1000000000", "--node-memory-gib", "64"]
    shown = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "1,000,000,000 users, 128 x 256 int8" in shown.output
    assert [line.split()[0] for line in shown.output.splitlines()[3:6]] == ["table", "log", "store"]
    assert "Redis Cluster is made for 1,000 nodes" in shown.output
    as_json = CliRunner().invoke(commands, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(as_json.output) == capacity(CapacityConfig(users=10**9, node_memory_gib=64)).model_dump(
        mode="json"
    )
