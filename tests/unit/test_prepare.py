"""A prepared data set: whole or not at all, the same bytes twice, the same content in any buckets."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner

from vista.config import DataConfig, GeneratedConfig, HistoryCut, WindowConfig
from vista.data.batches import BatchPlan
from vista.data.bench import main as bench
from vista.data.bucket import sorted_rows
from vista.data.dataset import Dataset
from vista.data.learn import Seen, learn, windows_of
from vista.data.partition import Partition, chunks_of
from vista.data.prepare import PrepareReport, prepare_dataset
from vista.data.schema import Batch, bucket_of, buckets_of
from vista.data.sources import SourceInfo
from vista.data.sources.draft import describe_events
from vista.errors import InputError, StageError

SMALL = GeneratedConfig(users=60, items=128, events_per_user=40, days=6)


INFO = SourceInfo(actions=("view",), context=(), tasks=("label",))


def data_of(buckets: int = 4, **changes: object) -> DataConfig:
    return DataConfig.model_validate(
        {"source": "generated", "buckets": buckets, "generated": SMALL, "max_uih": 30} | changes
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    path = tmp_path_factory.mktemp("prepared") / "data"
    return path, prepare_dataset(data_of(), path, WindowConfig())


def content(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_two_runs_write_the_same_bytes(prepared: tuple[Path, PrepareReport], tmp_path: Path) -> None:
    prepare_dataset(data_of(), tmp_path / "again", WindowConfig())
    assert content(tmp_path / "again") == content(prepared[0])
    assert not [name for name in content(prepared[0]) if "scratch" in name]


def test_another_seed_gives_another_digest(prepared: tuple[Path, PrepareReport], tmp_path: Path) -> None:
    other = data_of(generated=SMALL.model_copy(update={"seed": 1}))
    report = prepare_dataset(other, tmp_path / "other", WindowConfig())
    assert report.dataset.digest != prepared[1].dataset.digest


def bytes_of(batch: Batch) -> list[bytes]:
    return [getattr(batch, name).tobytes() for name in Batch.__slots__]


def sequence(dataset: Dataset) -> list[list[bytes]]:
    plan = BatchPlan.make(
        dataset.examples(0, 4), max_tokens=400, max_candidates=200, max_uih=30, seed=1, epoch=0
    )
    return [bytes_of(plan.batch(step)) for step in range(plan.steps)]


def write_orders(folder: Path) -> None:
    """A shop of positives in no order of time; 40 customers, 60 products, 6 days."""
    random = np.random.default_rng(0)
    rows = [
        f"{random.integers(0, 40)},{random.integers(0, 60)},{1_767_225_600 + second},{random.integers(0, 3)}"
        for second in random.integers(0, 6 * 86_400, 600)
    ]
    folder.mkdir()
    (folder / "orders.csv").write_text("\n".join(["customer,product,ts,department", *rows]) + "\n")
    (folder / "events.yaml").write_text(describe_events(str(folder)))


@pytest.mark.parametrize("source", ["generated", "events"])
@pytest.mark.parametrize("mode", ["event", "session", "day"])
def test_the_number_of_buckets_changes_nothing(mode: HistoryCut, source: str, tmp_path: Path) -> None:
    """Nor do sampled negatives depend on it."""
    write_orders(tmp_path / "shop")
    several = []
    for buckets in (1, 4, 7):
        data = data_of(buckets, history_cut=mode, source=source, path=str(tmp_path / "shop"))
        path = tmp_path / f"of-{buckets}"
        report = prepare_dataset(data, path, WindowConfig()).model_dump(exclude={"seconds"})
        rows = [Counter(pl.read_parquet(path / kind).rows()) for kind in ("events", "candidates")]
        several.append((report, sequence(Dataset.open(path)), rows))
    assert several[0] == several[1] == several[2]
    assert len(several[0][1]) > 3


def test_every_user_is_in_the_bucket_of_the_checksum(prepared: tuple[Path, PrepareReport]) -> None:
    dataset = Dataset.open(prepared[0])
    for bucket in range(dataset.buckets):
        events = pl.read_parquet(prepared[0] / "events" / f"bucket-{bucket:05d}.parquet")
        assert {bucket_of(user, 4) for user in events["user_id"].unique()} <= {bucket}
        assert events.sort("user_id", "event_time_us", "seq").equals(events)
    ids = np.array([0, 1, -1, 2**62, -(2**63), 2**63 - 1])
    assert buckets_of(ids, 1_000).tolist() == [bucket_of(int(user), 1_000) for user in ids]


def test_dictionaries_are_ordered_by_first_appearance(prepared: tuple[Path, PrepareReport]) -> None:
    dataset = Dataset.open(prepared[0])
    events = pl.read_parquet(prepared[0] / "events")
    for name, column in (("items", "item_id"), ("categories", "category_id")):
        table = pl.read_parquet(prepared[0] / f"{name}.parquet")
        assert table["row"].to_list() == list(range(1, table.height + 1))
        assert table.sort("first_seen_us", "id").equals(table)
        first = events.group_by(column).agg(pl.col("event_time_us").min())
        joined = table.join(first, left_on="id", right_on=column)
        assert (joined["first_seen_us"] <= joined["event_time_us"]).all()
    middle = dataset.day_start_us(-30)
    spec = dataset.spec(middle)
    seen = events.filter(pl.col("event_time_us") < middle)
    assert spec.num_items == 1 + seen["item_id"].n_unique()
    assert spec.num_users == 1 + seen["user_id"].n_unique()
    assert seen["item_row"].max() == spec.num_items - 1


def test_histories_hold_every_user_and_only_the_past(prepared: tuple[Path, PrepareReport]) -> None:
    dataset = Dataset.open(prepared[0])
    as_of_us = dataset.day_start_us(-40)
    events = pl.read_parquet(prepared[0] / "events")
    users: list[int] = []
    for bucket in range(dataset.buckets):
        for one in dataset.histories(as_of_us, bucket, max_uih=5, max_tokens=23):
            batch = one.batch
            assert batch.seq_offsets[-1] <= 23
            assert (batch.uih_time_us_L < as_of_us).all()
            for place, user in enumerate(batch.user_id_B.tolist()):
                past = events.filter((pl.col("user_id") == user) & (pl.col("event_time_us") < as_of_us))
                rows = slice(batch.seq_offsets[place], batch.seq_offsets[place + 1])
                assert batch.uih_item_L[rows].tolist() == past["item_row"].tail(5).to_list()
                newest = past["event_time_us"].max() if past.height else -1
                assert one.event_time_us_B[place] == newest
                assert one.seq_B[place] == (past["seq"].max() if past.height else -1)
            users += batch.user_id_B.tolist()
    assert sorted(users) == sorted(events["user_id"].unique())
    nobody = next(dataset.histories(dataset.day_start_us(-1_000), 0, 5, 1_000))
    assert set(nobody.seq_B.tolist()) == {-1}


def test_arrival_order_numbers_events_and_breaks_ties() -> None:
    table = pa.table({"user_id": [7, 7, 8, 7], "event_time_us": [5, 3, 1, 3], "seq": [-1] * 4})
    rows = sorted_rows(table)
    assert rows.select("user_id", "event_time_us", "seq").rows() == [
        (7, 3, 1),
        (7, 3, 2),
        (7, 5, 0),
        (8, 1, 0),
    ]


def test_partition_keeps_arrival_order_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vista.data.partition.CHUNK_ROWS", 10)
    users = np.random.default_rng(0).integers(0, 9, 100)
    table = pa.table({"user_id": users, "arrival": np.arange(100)})
    chunks = list(chunks_of(table.to_batches(max_chunksize=7)))
    assert len(chunks) > 3
    parts = Partition(tmp_path / "chunks", 5)
    for chunk in chunks:
        parts.add(chunk)
    found = [parts.bucket(bucket) for bucket in range(5)]
    for bucket, rows in enumerate(found):
        assert rows["arrival"].to_pylist() == np.flatnonzero(buckets_of(users, 5) == bucket).tolist()


@pytest.mark.parametrize(("last", "fraction", "k"), [(9, 0.6, 5), (2, 0.6, 1), (2, 0.9, 1), (13, 0.6, 8)])
def test_windows_leave_a_day_for_each_use(last: int, fraction: float, k: int) -> None:
    windows = windows_of(last, WindowConfig(foundation_fraction=fraction))
    assert (windows.first_day, windows.k, windows.n) == (0, k, last)


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tasks click: source 'generated' has label"):
        prepare_dataset(data_of(tasks=("click",)), tmp_path / "data", WindowConfig())
    assert list(tmp_path.iterdir()) == []


def test_opening_nothing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the stage prepare"):
        Dataset.open(tmp_path)


PREPARE = """
import sys
from pathlib import Path
from tests.unit.test_prepare import data_of
from vista.config import WindowConfig
from vista.data.prepare import prepare_dataset
print("started", flush=True)
prepare_dataset(data_of(), Path(sys.argv[1]), WindowConfig())
"""


def test_killed_it_leaves_the_old_data_set_and_a_restart_begins_anew(
    prepared: tuple[Path, PrepareReport], tmp_path: Path
) -> None:
    """Killed as soon as its first unfinished file is there."""
    path = tmp_path / "data"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(path)], cwd=root, stdout=subprocess.PIPE, env=os.environ
    )
    while not list(tmp_path.glob(".data.*/scratch")):
        assert process.poll() is None, "ended before it wrote anything"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    prepare_dataset(data_of(), path, WindowConfig())
    assert content(path) == content(prepared[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "name", ["dataset.json", "users.parquet", "items.parquet", "events/bucket-00002.parquet"]
)
@pytest.mark.parametrize("kept_bytes", [None, 0, 100])
def test_a_damaged_data_set_is_an_error_that_names_the_file(
    prepared: tuple[Path, PrepareReport], tmp_path: Path, name: str, kept_bytes: int | None
) -> None:
    shutil.copytree(prepared[0], tmp_path / "data")
    damaged = tmp_path / "data" / name
    if kept_bytes is None:
        damaged.unlink()
    else:
        os.truncate(damaged, kept_bytes)

    def read() -> None:
        dataset = Dataset.open(tmp_path / "data")
        dataset.spec(0)
        dataset.examples(0, 1)

    missing = name == "dataset.json" and kept_bytes is None
    with pytest.raises(InputError if missing else StageError, match="data" if missing else name):
        read()


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}/bucket-00002.parquet" for kind in ("events", "examples", "candidates")),
        "users.parquet", "items.parquet", "categories.parquet",
    ],
)  # fmt: skip
def test_one_changed_bit_anywhere_is_seen(
    prepared: tuple[Path, PrepareReport], tmp_path: Path, name: str
) -> None:
    """Most bits of a Parquet file can change without its reader's notice."""
    file = prepared[0] / name
    whole = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 20).tolist():
        copy = tmp_path / str(place)
        copy.mkdir()
        for entry in prepared[0].iterdir():
            (copy / entry.name).symlink_to(entry)
        (copy / name.split("/")[0]).unlink()
        if "/" in name:
            shutil.copytree(file.parent, copy / file.parent.name)
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (copy / name).write_bytes(changed)
        with pytest.raises(StageError) as raised:
            every_table(Dataset.open(copy))
        assert str(raised.value).startswith(f"{copy / name} cannot be read (its checksum is ")
        assert "`make run RESUME=1`, prepares it again" in str(raised.value)


def every_table(dataset: Dataset) -> None:
    dataset.examples(0, 1)
    dataset.spec(0)
    assert len(dataset.item_category_R)


def test_a_changed_number_in_what_says_it_all_is_seen(
    prepared: tuple[Path, PrepareReport], tmp_path: Path
) -> None:
    text = (prepared[0] / "dataset.json").read_text()
    origin_us = json.loads(text)["origin_us"]
    (tmp_path / "dataset.json").write_text(text.replace(str(origin_us), str(origin_us + 3_600_000_000)))
    with pytest.raises(StageError, match=r"dataset\.json cannot be read .* prepares it again"):
        Dataset.open(tmp_path)


def test_a_refused_preparation_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = DataConfig(source="kuairand", path=str(tmp_path / "empty"))
    with pytest.raises(InputError):
        prepare_dataset(data, tmp_path / "runs" / "experiments" / "data", WindowConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_learning_refuses_what_cannot_be_learned_from() -> None:
    def seen(days: int, label: int) -> Seen:
        collected = Seen(["label"], 0)
        rows = pl.DataFrame(
            {
                "user_id": np.arange(days),
                "item_id": np.arange(days),
                "category_id": np.arange(days),
                "value": np.zeros(days, np.float32),
                "event_time_us": np.arange(days) * 86_400_000_000,
                "label_label": np.full(days, label, np.uint8),
            }
        )
        collected.add(rows)
        return collected

    for days, label, reason in (
        (5, 1, "is 1 in every row"),
        (2, 1, "labels on 2 days"),
        (5, 255, "no row with a label"),
    ):
        with pytest.raises(InputError, match=reason):
            learn(seen(days, label), data_of(), INFO, WindowConfig())
    sampling = INFO.model_copy(update={"negatives_per_positive": 1})
    assert learn(seen(5, 1), data_of(), sampling, WindowConfig()).windows.n == 4
    with pytest.raises(InputError, match="is 0 in every row"):
        learn(seen(5, 0), data_of(), sampling, WindowConfig())


def test_one_row_of_a_reset_clock_is_not_what_the_foundation_learns_from(tmp_path: Path) -> None:
    """Refused, and `describe-events` says so in the same words."""
    rows = [f"{n % 80},{n % 30},{1_767_225_600 + n * 864},{n % 2}" for n in range(1_400)]
    (tmp_path / "events.yaml").write_text("user: u\nitem: i\ntime: t\ntime_unit: s\nlabel: y\n")
    data = DataConfig(source="events", path=str(tmp_path))
    (tmp_path / "a.csv").write_text("\n".join(["u,i,t,y", *rows]) + "\n")
    assert "It would be accepted." in describe_events(str(tmp_path))
    (tmp_path / "a.csv").write_text("\n".join(["u,i,t,y", *rows, "5,7,946684800,0"]) + "\n")
    message = (
        "the foundation would train on 2000-01-01 .. 2015-08-15, which hold 1 of 1,401 rows with a label (at "
        "least 10% are needed): 1 on 2000-01-01, the next on 2026-01-01, the last on 2026-01-14. Are the "
        "first times right? Leave the rows of those days out"
    )
    with pytest.raises(InputError) as raised:
        prepare_dataset(data, tmp_path / "data", WindowConfig())
    assert str(raised.value) == message
    assert f"# It would be refused: {message}\n" in describe_events(str(tmp_path))


def test_the_benchmark_measures_every_part(tmp_path: Path) -> None:
    arguments = ["--parquet-events", "20000", "--gzip-events", "10000", "--out", str(tmp_path / "bench.json")]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "bench.json").read_text())
    rows = {one["name"]: one["rows"] for one in report["measured"]}
    assert rows.pop("batches") > 20_000
    assert rows == {
        "gzip CSV: read the source only": 10_000,
        "gzip CSV: prepare": 10_000,
        "Parquet: read the source only": 20_000,
        "Parquet: prepare": 20_000,
        "dense features only, one thread": 20_000,
    }
    assert all(one["wall_s"] > 0 and one["cpu_s"] > 0 for one in report["measured"])


def test_a_shop_of_positives_is_prepared_with_negatives(tmp_path: Path) -> None:
    """From the draft of `describe-events` to candidates."""
    write_orders(tmp_path / "shop")
    data = DataConfig(source="events", path=str(tmp_path / "shop"), buckets=3)
    report = prepare_dataset(data, tmp_path / "data", WindowConfig())
    dataset = Dataset.open(tmp_path / "data")
    found = pl.read_parquet(tmp_path / "data" / "candidates")
    positive, drawn = found.filter(~pl.col("sampled")), found.filter("sampled")
    assert (positive["label_label"] == 1).all()
    assert (drawn["label_label"] == 0).all()
    assert (positive.height, report.dataset.rows) == (600 - 60, 600)  # each of 60 products was new once
    assert 2_100 < drawn.height <= 4 * 540  # at first few items are known
    first_seen = dict(zip(dataset.items.id_R.tolist(), dataset.items.first_seen_us_R.tolist(), strict=True))
    events = pl.read_parquet(tmp_path / "data" / "events")
    for user, item, cut_us in drawn.select("user_id", "item_id", "cut_us").rows():
        assert first_seen[item] < cut_us
        own = events.filter((pl.col("user_id") == user) & (pl.col("event_time_us") < cut_us))
        assert item not in own["item_id"]
    examples = dataset.examples(0, dataset.split().n + 1)
    assert int(examples.num_candidates_E.sum()) == found.height == report.dataset.candidates
    again = prepare_dataset(data, tmp_path / "again", WindowConfig())
    assert again.dataset.digest == report.dataset.digest
    assert content(tmp_path / "again") == content(tmp_path / "data")


@pytest.mark.parametrize("label", ["", "label: bought\n"])
@pytest.mark.parametrize("mode", ["event", "session", "day"])
def test_that_nobody_had_an_item_does_not_tell_the_label(
    mode: HistoryCut, label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chance data to which new items keep coming, one row in five. Negatives are of known items only."""
    shop = tmp_path / "shop"
    shop.mkdir()
    random = np.random.default_rng(0)
    rows = [
        f"{random.integers(0, 100)},{n if random.random() < 0.2 else random.integers(0, n + 1) // 5 * 5},"
        f"{1_767_225_600 + n * 259},{random.integers(0, 2)}"
        for n in range(2_000)
    ]
    (shop / "a.csv").write_text("\n".join(["u,i,t,bought", *rows]) + "\n")
    (shop / "events.yaml").write_text(
        f"user: u\nitem: i\ntime: t\ntime_unit: s\nnegatives_per_positive: 4\n{label}"
    )
    caplog.set_level("INFO")
    data = DataConfig(source="events", path=str(shop), buckets=2, history_cut=mode)
    report = prepare_dataset(data, tmp_path / "data", WindowConfig())
    found = pl.read_parquet(tmp_path / "data" / "candidates")
    assert (found["dense_item_log_count"] > 0).all()
    assert set(found["label_label"].to_list()) == {0, 1}
    assert report.dataset.rows == 2_000
    left_out = 2_000 - found.filter(~pl.col("sampled")).height
    assert left_out > 500
    assert f"{left_out} rows are no candidates but history only" in caplog.text


def test_items_that_come_once_cannot_be_foretold(tmp_path: Path) -> None:
    rows = [f"{n % 5},{n},{1_767_225_600 + n * 20_000}" for n in range(40)]
    (tmp_path / "orders.csv").write_text("\n".join(["customer,product,ts", *rows]) + "\n")
    (tmp_path / "events.yaml").write_text(describe_events(str(tmp_path)))
    with pytest.raises(InputError, match="every one of the 40 items was new when it was chosen"):
        prepare_dataset(DataConfig(source="events", path=str(tmp_path)), tmp_path / "data", WindowConfig())


def test_a_shop_of_one_item_has_no_negatives(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    rows = [f"{n % 5},1,{1_767_225_600 + n * 20_000}" for n in range(40)]
    (shop / "orders.csv").write_text("\n".join(["customer,product,ts", *rows]) + "\n")
    (shop / "events.yaml").write_text(describe_events(str(shop)))
    with pytest.raises(
        InputError, match="no negative could be drawn for 39 positives: there are only 1 items"
    ):
        prepare_dataset(DataConfig(source="events", path=str(shop)), tmp_path / "data", WindowConfig())
    assert not (tmp_path / "data").exists()
