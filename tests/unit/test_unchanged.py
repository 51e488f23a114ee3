"""Records that are copied from an earlier epoch: which, and that they are what the model would have made."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from model_batches import CONFIG, SPEC, make_batch
from numpy.typing import NDArray
from torch import Tensor
from training_data import export_again, foundation_in_place, settings_of

from vista.config import DataConfig, ModelConfig, RefreshConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import DAY_US, Batch, HistoryBatch
from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import AuditLine, Catalog, Epoch
from vista.delivery.publish import attempt_directory, commit, export_id
from vista.delivery.release import withdraw
from vista.delivery.sqlite_catalog import SqliteCatalog
from vista.errors import EpochError
from vista.model.checkpoint import CheckpointMeta
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.summary.export import COMPANY, ExportedEpoch, export_bucket, in_company
from vista.summary.record import Codec, decode, encode, inspect
from vista.summary.table import ShardRows, Work, read_bucket, verify_attempt, write_shard
from vista.summary.unchanged import inputs_digests, users_where
from vista.train.export_summaries import export_summaries, nearest, open_export
from vista.train.jobs import usable_epochs

MODEL = ModelConfig(width=8, heads=2, layers=2, seeds=3, mlp=(16,), embedding_init=0.5)
BUCKETS, DAYS, USERS, EVENTS = 2, 6, 20, 40
SILENT = range(14, USERS)
"""Users without an event from day 3 on; the others have some every day."""
SHORT = 19
"""A silent user of five events."""


def events() -> pl.DataFrame:
    """Rows in order of arrival. User 0 begins with every item and category: what comes later or late leaves
    the dictionaries as they are."""
    draw = np.random.default_rng(0)
    users, days = [np.zeros(30, np.int64)], [np.linspace(0, 0.01, 30)]
    for user in range(USERS):
        count = 5 if user == SHORT else EVENTS if user in SILENT else 2 * EVENTS
        users.append(np.full(count, user))
        days.append(np.sort(draw.uniform(0.1, 3 if user in SILENT else DAYS, count)))
    user_N, day_N = np.concatenate(users), np.concatenate(days)
    item_N = np.append(np.arange(30), draw.integers(0, 30, len(user_N) - 30))
    rows = pl.DataFrame(
        {
            "user": user_N,
            "item": item_N,
            "category": item_N % 5,
            "us": 19_000 * DAY_US + (day_N * DAY_US).astype(np.int64),
            "value": draw.random(len(user_N)),
            "label": draw.integers(0, 2, len(user_N)),
        }
    )
    return rows.sort("us", maintain_order=True)


def late(user: int, day: float) -> pl.DataFrame:
    """One more event, at the end of what has arrived."""
    return (
        events()
        .tail(1)
        .with_columns(user=pl.lit(user, pl.Int64), us=pl.lit(19_000 * DAY_US + int(day * DAY_US), pl.Int64))
    )


def write_events(path: Path, rows: pl.DataFrame) -> None:
    path.mkdir()
    rows.write_csv(path / "events.csv")
    (path / "events.yaml").write_text(
        "user: user\nitem: item\ncategory: category\ntime: us\ntime_unit: us\nvalue: value\nlabel: label\n"
    )


def prepared(path: Path, rows: pl.DataFrame, value_edges: tuple[float, ...] | None = None) -> Dataset:
    write_events(path, rows)
    config = DataConfig(source="events", path=str(path), buckets=BUCKETS, max_uih=1_000)
    prepare_dataset(config, path / "prepared", WindowConfig(), value_edges)
    return Dataset.open(path / "prepared")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return prepared(tmp_path_factory.mktemp("data") / "first", events())


def export(
    dataset: Dataset,
    day: int,
    directory: Path,
    *,
    max_uih: int = 1_000,
    earlier: Path | None = None,
    **changes: object,
) -> Work:
    """Every bucket of an epoch, numbered after its day; returns how it was made."""
    epoch = ExportedEpoch(
        space="s",
        epoch=day,
        as_of_us=dataset.day_start_us(day),
        codec="int8",
        zstd=True,
        made_by="model",
        earlier=None if earlier is None else str(earlier),
    ).model_copy(update=changes)
    torch.manual_seed(0)
    model = Ranker(MODEL, dataset.spec(dataset.day_start_us(3)), "vista").eval()
    return Work.total(
        export_bucket(model, max_uih, dataset, bucket, epoch, directory).work for bucket in range(BUCKETS)
    )


def rows_of(directory: Path) -> list[ShardRows]:
    return [rows for bucket in range(BUCKETS) for rows in read_bucket(directory, bucket)]


def records_of(directory: Path) -> dict[int, bytes]:
    return {
        user: data
        for rows in rows_of(directory)
        for user, data in zip(rows.user_id_B.tolist(), rows.records, strict=True)
    }


def assert_as_computed(dataset: Dataset, day: int, found: Path, **how: int) -> None:
    """The records in `found` are, byte for byte, those of an export that copies nothing."""
    anew = found.with_name(f"{found.name}-anew")
    assert export(dataset, day, anew, **how).republished == 0
    assert records_of(found) == records_of(anew)
    for ours, theirs in zip(rows_of(found), rows_of(anew), strict=True):
        np.testing.assert_array_equal(ours.inputs_digest_B, theirs.inputs_digest_B)
        np.testing.assert_array_equal(ours.seq_B, theirs.seq_B)


@pytest.mark.parametrize("day", [0, 3, 4, 6])
def test_only_users_with_other_events_are_computed(dataset: Dataset, tmp_path: Path, day: int) -> None:
    """From an epoch of day 3, forwards and backwards in time."""
    export(dataset, 3, tmp_path / "three")
    work = export(dataset, day, tmp_path / "next", earlier=tmp_path / "three")
    silent_rows = sum(5 if user == SHORT else EVENTS for user in SILENT) + MODEL.seeds * len(SILENT)
    copied = {0: 0, 3: USERS, 4: len(SILENT), 6: len(SILENT)}[day]
    assert (work.republished, work.recomputed) == (copied, USERS - copied)
    if day > 3:
        assert work.republished_rows == silent_rows
        assert work.saved_cpu_s == pytest.approx(work.model_cpu_s * silent_rows / work.recomputed_rows)
    assert_as_computed(dataset, day, tmp_path / "next")


def test_epochs_follow_each_other_without_the_model(dataset: Dataset, tmp_path: Path) -> None:
    """What is copied is copied on: the third epoch's records are those of the first."""
    export(dataset, 3, tmp_path / "3")
    export(dataset, 4, tmp_path / "4", earlier=tmp_path / "3")
    work = export(dataset, 5, tmp_path / "5", earlier=tmp_path / "4")
    assert work.republished == len(SILENT)
    assert_as_computed(dataset, 5, tmp_path / "5")


def test_late_and_removed_events_are_seen(dataset: Dataset, tmp_path: Path) -> None:
    """The same day, of data that has changed below it: neither `seq` nor the newest time would tell."""
    gone = events().filter(pl.col("user") == 17).row(20, named=True)
    kept = events().filter((pl.col("user") != 17) | (pl.col("us") != gone["us"]))
    grown = prepared(
        tmp_path / "grown",
        pl.concat([kept, late(15, 2.5), late(16, 0.05), late(17, 0.05)]),
        dataset.file.value_edges,
    )
    export(dataset, 3, tmp_path / "before", max_uih=20)
    work = export(grown, 3, tmp_path / "after", max_uih=20, earlier=tmp_path / "before")
    before, after = (records_of(tmp_path / name) for name in ("before", "after"))
    payload = {user: decode(data).payload for user, data in before.items()}
    changed = {user for user, data in after.items() if decode(data).payload != payload[user]}
    # user 16's late event is older than what the model reads of her: her body is copied, her seq is not
    assert (changed, work.recomputed) == ({15, 17}, 2)
    assert inspect(after[16]).seq == EVENTS == inspect(before[16]).seq + 1
    assert inspect(after[17]).order[0] == inspect(before[17]).order[0]
    assert_as_computed(grown, 3, tmp_path / "after", max_uih=20)


def test_another_window_copies_whom_it_does_not_cut(dataset: Dataset, tmp_path: Path) -> None:
    export(dataset, 4, tmp_path / "long", max_uih=1_000)
    work = export(dataset, 4, tmp_path / "short", max_uih=10, earlier=tmp_path / "long")
    assert work.republished == 1
    assert_as_computed(dataset, 4, tmp_path / "short", max_uih=10)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_stage_computes_each_state_of_a_user_once(tmp_path: Path) -> None:
    """All epochs of a first refresh, in Ray's tasks: as if each had been made alone."""
    write_events(tmp_path / "events", events())
    config = RefreshConfig(
        recipe="events", data_dir=str(tmp_path / "events"), run_id="first", seeds=4, width=16
    )
    settings = settings_of(tmp_path / "home")
    stage = foundation_in_place(config, settings)
    report = export_summaries(config, settings)
    assert [one.republished for one in report.epochs] == [0, len(SILENT), len(SILENT)]
    assert report.republished == 2 * len(SILENT)
    assert report.recomputed == 3 * USERS - report.republished
    assert report.saved_cpu_s is not None
    assert report.saved_cpu_s > 0
    for one in usable_epochs(settings.catalog_url, report.space):
        anew = tmp_path / f"anew-{one.epoch}"
        export_again(stage, one, anew)
        assert one.digest == verify_attempt(anew, one.buckets).digest


@pytest.mark.parametrize("change", [{"codec": "bf16"}, {"zstd": False}, {"made_by": "another model"}])
def test_nothing_is_copied_of_what_was_made_otherwise(
    dataset: Dataset, tmp_path: Path, change: dict[str, object]
) -> None:
    export(dataset, 3, tmp_path / "earlier")
    work = export(dataset, 3, tmp_path / "now", earlier=tmp_path / "earlier", **change)
    assert (work.republished, work.recomputed) == (0, USERS)
    assert work.saved_cpu_s == 0


def test_epochs_that_hold_nothing_to_copy(dataset: Dataset, tmp_path: Path) -> None:
    """Deleted files, shards from before there were digests, tombstones in the place of summaries."""
    assert export(dataset, 3, tmp_path / "a", earlier=tmp_path / "deleted").republished == 0
    rewritten(tmp_path / "a", tmp_path / "undigested", lambda data: data, digests=False)
    assert export(dataset, 3, tmp_path / "b", earlier=tmp_path / "undigested").republished == 0
    rewritten(tmp_path / "a", tmp_path / "erased", tombstone)
    assert export(dataset, 3, tmp_path / "c", earlier=tmp_path / "erased").republished == 0
    assert records_of(tmp_path / "a") == records_of(tmp_path / "b") == records_of(tmp_path / "c")


def tombstone(data: bytes) -> bytes:
    gone = {"codec": Codec.NONE, "seeds": 0, "width": 0, "zstd": False, "tombstone": True, "payload": b""}
    return encode(replace(decode(data), **gone))


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def of_another(data: bytes) -> bytes:
    return encode(replace(decode(data), user_id=10**6))


@pytest.mark.parametrize(("harm", "message"), [(damaged, "were damaged"), (of_another, "of user 1000000")])
def test_a_damaged_table_is_not_copied_from(
    dataset: Dataset, tmp_path: Path, harm: Callable[[bytes], bytes], message: str
) -> None:
    export(dataset, 3, tmp_path / "good")
    rewritten(tmp_path / "good", tmp_path / "bad", harm)
    with pytest.raises(EpochError, match=f"{message}.*withdraw the epoch"):
        export(dataset, 3, tmp_path / "now", earlier=tmp_path / "bad")


def rewritten(source: Path, target: Path, change: Callable[[bytes], bytes], *, digests: bool = True) -> None:
    """The shards of an attempt with other records."""
    for bucket in range(BUCKETS):
        for rows in read_bucket(source, bucket):
            write_shard(
                target, bucket, rows.user_id_B, rows.seq_B, rows.event_time_us_B,
                [change(data) for data in rows.records],
                inputs_digests=rows.inputs_digest_B if digests else None,
            )  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Batch) if field.name.startswith("uih_")])
def test_a_digest_covers_every_column_that_is_read(name: str) -> None:
    batch = make_batch([3, 0, 4], [0, 0, 0])
    before = inputs_digests(batch, "model")
    assert len(set(before.tolist())) == 3
    for row, user in ((0, 0), (2, 0), (3, 2), (6, 2)):
        column_L = getattr(batch, name).copy()
        column_L[row] += 1
        differs = inputs_digests(replace(batch, **{name: column_L}), "model") != before
        assert differs.tolist() == [one == user for one in range(3)]


def test_a_digest_covers_the_order_and_the_maker_and_nothing_else() -> None:
    batch = make_batch([3, 2], [0, 0])
    before = inputs_digests(batch, "model")
    swapped = replace(batch, **{
        field.name: getattr(batch, field.name)[[1, 0, 2, 3, 4]]
        for field in fields(Batch) if field.name.startswith("uih_")
    })  # fmt: skip
    assert (inputs_digests(swapped, "model") != before).tolist() == [True, False]
    assert (inputs_digests(batch, "another") != before).all()
    shared = replace(batch, seq_offsets=np.array([0, 2, 5]))
    assert (inputs_digests(shared, "model") != before).all()
    elsewhere = replace(batch, cut_us_B=batch.cut_us_B + 1, user_row_B=batch.user_row_B + 1)
    assert (inputs_digests(elsewhere, "model") == before).all()


@pytest.mark.parametrize("changes", [{}, {"layers": 1, "half_life_s": 3_600.0}, {"attention": "softmax"}])
def test_a_summary_does_not_depend_on_the_clock(changes: dict[str, object]) -> None:
    """Nor on whose it is: that is why a digest of the events is enough."""
    torch.manual_seed(0)
    model = Ranker(ModelConfig.model_validate(CONFIG.model_dump() | changes), SPEC, "vista").eval()
    batch = make_batch([3, 0, 40], [0, 0, 0])
    later = replace(batch, cut_us_B=batch.cut_us_B + 10**12, user_row_B=batch.user_row_B % 3 + 1)
    with torch.inference_mode():
        first, second = (model.summarise(tensors(one, "cpu")) for one in (batch, later))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 1, "half_life_s": 3_600.0},
        {"layers": 2, "width": 64, "heads": 1, "seeds": 32},
        {"attention": "linear"},
        {"attention": "silu"},
        {"attention": "softmax"},
    ],
)
def test_a_summary_does_not_depend_on_who_is_computed_beside_it(changes: dict[str, object]) -> None:
    """To the last bit, alone or among others: so a full export's records are those of a partial one.

    But for softmax, whose rows are filled up to the longest of a group: its sums differ by roundings, some
    1e-6 of numbers around 1.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Ranker(ModelConfig.model_validate(CONFIG.model_dump() | changes), SPEC, "vista").eval()
    long = 20_000 if model.config.attention in ("qla", "linear") else 200  # the others cost its square
    lengths = [0, 1, 2, 5, 31, 32, 33, long, *range(3, 120, 9)]
    part = HistoryBatch(
        batch=make_batch(lengths, [0] * len(lengths)),
        seq_B=np.zeros(len(lengths), np.int64),
        event_time_us_B=np.zeros(len(lengths), np.int64),
        seq_L=np.zeros(sum(lengths), np.int64),
        whole_until_B=np.zeros(len(lengths), np.int64),
    )

    def summaries(mask_B: NDArray[np.bool_]) -> Tensor:
        with torch.inference_mode():
            batch = in_company(users_where(part, mask_B).batch)
            return model.summarise(tensors(batch, "cpu"))[:-COMPANY]

    every = summaries(np.ones(len(lengths), bool))
    draw = np.random.default_rng(0)
    alone = [np.arange(len(lengths)) == user for user in range(10)]
    tolerance = 5e-6 if model.config.attention == "softmax" else 0
    for mask_B in (*alone, *(draw.random((10, len(lengths))) < 0.3)):
        expected = every[torch.from_numpy(mask_B)]
        torch.testing.assert_close(summaries(mask_B), expected, rtol=0, atol=tolerance)


def epoch(number: int, as_of_us: int, *, checkpoint: str = "d", **changes: object) -> Epoch:
    known = Epoch(
        space="s", epoch=number, export_id=export_id("s", checkpoint, as_of_us, "int8"), as_of_us=as_of_us,
        trained_until_us=0, checkpoint="", codec="int8", buckets=2, location=f"/{number}", published=True,
    )  # fmt: skip
    return known.model_copy(update=changes)


def test_the_nearest_epoch_of_the_checkpoint_is_copied_from() -> None:
    opened = [epoch(number, time, published=False) for number, time in ((7, 50), (8, 60), (9, 70))]
    attempts = [f"/attempt-{one.epoch}" for one in opened]
    assert nearest(opened, opened, attempts, "d") == [None, "/attempt-7", "/attempt-8"]
    known = [
        epoch(1, 20), epoch(2, 95), epoch(3, 49, withdrawn=True), epoch(4, 51, checkpoint="other"),
        epoch(5, 52, published=False),
    ]  # fmt: skip
    assert nearest(known, opened, attempts, "d") == ["/1", "/attempt-7", "/attempt-8"]
    assert nearest(known, opened[2:], attempts[2:], "d") == ["/2"]


def test_a_manifest_names_every_epoch_whose_records_may_be_in_the_shard(
    dataset: Dataset, tmp_path: Path
) -> None:
    export(dataset, 3, tmp_path / "3")
    export(dataset, 4, tmp_path / "4", earlier=tmp_path / "3")
    export(dataset, 5, tmp_path / "5", earlier=tmp_path / "4")
    found = [verify_attempt(tmp_path / name, BUCKETS).copied_from for name in ("3", "4", "5")]
    assert found == [(), (3,), (3, 4)]


def test_what_copied_from_an_epoch_that_is_withdrawn_meanwhile_is_not_published(
    dataset: Dataset, tmp_path: Path
) -> None:
    bad = line("withdraw", "s/1")
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        first, second = (opened(catalog, dataset, day) for day in (3, 4))
        places = [attempt_directory(tmp_path, one, "a") for one in (first, second)]
        export(dataset, 3, Path(places[0]), epoch=1)
        first = commit(catalog, first, places[0])
        export(dataset, 4, Path(places[1]), epoch=2, earlier=Path(places[0]))
        catalog.withdraw("s", 1, bad)
        with pytest.raises(EpochError, match="holds records of epoch 1, which has been withdrawn since"):
            commit(catalog, second, places[1])
        assert not Path(places[1]).exists(), "a rerun would have kept its shards"
        export(dataset, 4, Path(places[1]), epoch=2)
        assert commit(catalog, second, places[1]).copied_from == ()


def test_a_withdrawal_between_check_and_publication_withdraws_the_copy(
    dataset: Dataset, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"

    class Slow(SqliteCatalog):
        """Another process withdraws the source right before this one publishes."""

        def publish(self, epoch: Epoch) -> Epoch:
            with closing(open_catalog(url)) as other:
                other.withdraw("s", 1, line("withdraw", "s/1"))
            return super().publish(epoch)

    with closing(open_catalog(url)) as catalog, closing(Slow(url)) as slow:
        first, second = (opened(catalog, dataset, day) for day in (3, 4))
        places = [attempt_directory(tmp_path, one, "a") for one in (first, second)]
        export(dataset, 3, Path(places[0]), epoch=1)
        commit(catalog, first, places[0])
        export(dataset, 4, Path(places[1]), epoch=2, earlier=Path(places[0]))
        with pytest.raises(EpochError, match="epoch 2 of s is withdrawn: it holds records of epoch 1"):
            commit(slow, second, places[1])
        assert [one.withdrawn for one in catalog.list_epochs("s")] == [True, True]
        assert [one.before for one in catalog.audit()] == ["s/1", "s/2"]


def test_a_source_is_withdrawn_after_its_copies(dataset: Dataset, tmp_path: Path) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        known = [opened(catalog, dataset, day) for day in (3, 4, 5)]
        places = [attempt_directory(tmp_path, one, "a") for one in known]
        before: Path | None = None
        for number, (day, one, place) in enumerate(zip((3, 4, 5), known, places, strict=True), start=1):
            export(dataset, day, Path(place), epoch=number, earlier=before)
            commit(catalog, one, place)
            before = Path(place)
        how = {"space": "s", "actor": "me", "reason": "bad"}
        for number, named in ((1, "epoch 3, epoch 2"), (2, "epoch 3")):
            for dry_run in (True, False):
                with pytest.raises(EpochError, match=f"are in {named} too: withdraw those first"):
                    withdraw(catalog, epoch=number, dry_run=dry_run, **how)
        for number in (3, 2, 1):
            withdraw(catalog, epoch=number, **how)
        assert all(one.withdrawn for one in catalog.list_epochs("s"))


def test_to_export_again_what_was_withdrawn_opens_another_epoch(dataset: Dataset, tmp_path: Path) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        for number in (1, 2, 3):
            again = [opened(catalog, dataset, 3) for _ in range(2)]
            assert [one.epoch for one in again] == [number, number], "idempotent until it is withdrawn"
            place = attempt_directory(tmp_path, again[0], "a")
            export(dataset, 3, Path(place), epoch=number)
            commit(catalog, again[0], place)
            catalog.withdraw("s", number, line("withdraw", f"s/{number}"))


def opened(catalog: Catalog, dataset: Dataset, day: int) -> Epoch:
    meta = CheckpointMeta(
        kind="vista", config=MODEL, spec=dataset.spec(dataset.day_start_us(3)), space="s",
        trained_until_us=0, max_uih=1_000, digest="d",
    )  # fmt: skip
    as_of_us = dataset.day_start_us(day)
    return open_export(catalog, meta, Path("c"), as_of_us, codec="int8", buckets=BUCKETS)


def line(action: str, before: str) -> AuditLine:
    return AuditLine(time_us=0, actor="me", action=action, reason="bad", before=before, after="")


def test_what_an_interrupted_export_has_published_is_copied_from_where_it_lies() -> None:
    opened = [epoch(7, 50), epoch(8, 60, withdrawn=True), epoch(9, 70, published=False)]
    attempts = [f"/attempt-{one.epoch}" for one in opened]
    assert nearest(opened, opened, attempts, "d")[2] == "/7"
