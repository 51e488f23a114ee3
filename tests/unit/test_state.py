"""The bytes of a state, and states in the table: export, restart, and the events that come after."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from model_batches import golden_state
from numpy.typing import NDArray

from vista.config import DataConfig, ModelConfig, WindowConfig
from vista.data.dataset import Dataset
from vista.data.prepare import prepare_dataset
from vista.data.schema import DAY_US, HistoryBatch
from vista.errors import EpochError, InputError, RecordError, SpaceMismatchError
from vista.model.incremental import Incremental, SummaryState
from vista.model.inputs import tensors
from vista.model.ranker import Ranker
from vista.summary.export import ExportedEpoch, export_bucket
from vista.summary.record import space_id
from vista.summary.state import HEADER_BYTES, decode_states, encode_states, inspect_state
from vista.summary.table import TABLE_SCHEMA, read_bucket

GOLDEN = Path(__file__).parents[1] / "golden" / "state.bin"
MODEL = ModelConfig(width=8, heads=2, seeds=3, mlp=(16,), embedding_init=0.5, positions=False)
BUCKETS, DAYS = 2, 6
OF_GOLDEN = {"space_id": space_id("generated-0a1b2c"), "epoch": 7}
OF_EXPORTED = {"space_id": space_id("s"), "epoch": 1}


def test_what_is_encoded_is_decoded() -> None:
    (header,), state = decode_states([encoded(golden_state())], **OF_GOLDEN)
    assert (header.space_id, header.epoch, header.user_id) == (space_id("generated-0a1b2c"), 7, 42)
    assert_equal(state, golden_state())


@pytest.mark.parametrize("other", [{"space_id": space_id("generated-ffffff")}, {"epoch": 8}])
def test_the_state_of_another_checkpoint_is_refused(other: dict[str, int]) -> None:
    """Of the same shape it would be followed without complaint, to other summaries."""
    with pytest.raises(SpaceMismatchError, match=r"the state of user 42 is of space .* epoch 7, not of"):
        decode_states([encoded(golden_state())], **OF_GOLDEN | other)


def encoded(state: SummaryState) -> bytes:
    (data,) = encode_states(state, space_id=space_id("generated-0a1b2c"), epoch=7, user_id_B=np.array([42]))
    return data


def assert_equal(found: SummaryState, expected: SummaryState) -> None:
    for name in SummaryState.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def resealed(data: bytes, at: int, field: str, value: int) -> bytes:
    """The bytes with one header field changed and the checksum made right again."""
    changed = bytearray(data)
    struct.pack_into(field, changed, at, value)
    crc = google_crc32c.extend(google_crc32c.value(bytes(changed[:60])), bytes(changed[HEADER_BYTES:]))
    struct.pack_into("<I", changed, 60, crc)
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no state"),
        (b"VSTA" + GOLDEN.read_bytes()[4:], "magic b'VSTA'"),
        (resealed(GOLDEN.read_bytes(), 4, "<B", 2), "version 2 is unknown"),
        (resealed(GOLDEN.read_bytes(), 5, "<B", 3), "128 bytes, but the header says 64 [+] 8 x 9"),
        (resealed(GOLDEN.read_bytes() + bytes(8), 4, "<B", 1), "136 bytes, but the header says"),
        (GOLDEN.read_bytes()[:-1], "crc32c"),
    ],
)
def test_wrong_bytes_are_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        inspect_state(data)


def test_states_of_two_shapes_are_refused() -> None:
    state = golden_state()
    other = SummaryState(
        **{name: getattr(state, name) for name in SummaryState.__dataclass_fields__ if name != "actions_BA"},
        actions_BA=torch.zeros(1, 3, dtype=torch.float64),
    )
    with pytest.raises(RecordError, match="2 states of 2 shapes"):
        decode_states([encoded(state), encoded(other)], **OF_GOLDEN)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users whose events arrive in order of time but for some, which come hours or days late."""
    path = tmp_path_factory.mktemp("data")
    draw, users, events = np.random.default_rng(0), 20, 60
    time_us = 19_000 * DAY_US + np.sort(draw.integers(0, DAYS * DAY_US, (users, events)), axis=1)
    arrival = time_us + np.where(draw.random((users, events)) < 0.2, draw.integers(0, 2 * DAY_US, 1), 0)
    order = np.argsort(arrival.flatten(), kind="stable")
    pl.DataFrame(
        {
            "user": np.repeat(np.arange(users), events),
            "item": draw.integers(0, 30, users * events),
            "category": draw.integers(0, 5, users * events),
            "us": time_us.flatten(),
            "value": draw.random(users * events),
            "label": draw.integers(0, 2, users * events),
        }
    )[order].write_csv(path / "events.csv")
    (path / "events.yaml").write_text(
        "user: user\nitem: item\ncategory: category\ntime: us\ntime_unit: us\nvalue: value\nlabel: label\n"
    )
    config = DataConfig(source="events", path=str(path), buckets=BUCKETS, max_uih=1_000)
    prepare_dataset(config, path / "prepared", WindowConfig())
    return Dataset.open(path / "prepared")


def model_of(dataset: Dataset) -> Ranker:
    torch.manual_seed(0)
    return Ranker(MODEL, dataset.spec(dataset.day_start_us(DAYS)), "vista").eval()


def exported(dataset: Dataset, day: int, directory: Path, *, states: bool, max_uih: int = 1_000) -> None:
    epoch = ExportedEpoch(
        space="s",
        epoch=1,
        as_of_us=dataset.day_start_us(day),
        codec="bf16",
        zstd=False,
        made_by="test",
        states=states,
    )
    for bucket in range(BUCKETS):
        export_bucket(model_of(dataset), max_uih, dataset, bucket, epoch, directory)


def users_in(dataset: Dataset, day: int, bucket: int) -> HistoryBatch:
    (part,) = dataset.histories(dataset.day_start_us(day), bucket, 1_000, 10**6)
    return part


@pytest.mark.parametrize("bucket", range(BUCKETS))
def test_a_restart_from_the_table_follows_to_the_end(dataset: Dataset, tmp_path: Path, bucket: int) -> None:
    """An epoch as of day 3, then all events again from the log's start: at the end, as recomputed."""
    exported(dataset, 3, tmp_path, states=True)
    following = Incremental(model_of(dataset), 1_000)
    (rows,) = read_bucket(tmp_path, bucket, "state")
    headers, state = decode_states(rows.records, **OF_EXPORTED)
    before, after = users_in(dataset, 3, bucket), users_in(dataset, DAYS + 2, bucket)
    assert [header.user_id for header in headers] == rows.user_id_B.tolist() == after.batch.user_id_B.tolist()
    assert {(header.space_id, header.epoch) for header in headers} == {(space_id("s"), 1)}
    held_B = state.seq_B.numpy()
    assert ((held_B + 1) == before.whole_until_B).all()
    assert (held_B < before.seq_B).any(), "nobody's record holds an event that came after a later one"
    assert (held_B > 0).all()
    state = following.update(state, after.batch, after.seq_L)
    with torch.inference_mode():
        expected = following.model.summarise(tensors(after.batch, "cpu"))
    torch.testing.assert_close(following.summary(state), expected, rtol=0, atol=1e-5)
    assert state.seq_B.tolist() == after.seq_B.tolist()
    (data,) = encode_states(
        one_of(state, 0), space_id=space_id("s"), epoch=1, user_id_B=after.batch.user_id_B[:1]
    )
    assert_equal(decode_states([data], **OF_EXPORTED)[1], one_of(state, 0))


def one_of(state: SummaryState, user: int) -> SummaryState:
    return SummaryState(
        **{name: getattr(state, name)[user : user + 1] for name in SummaryState.__dataclass_fields__}
    )


def arrived(dataset: Dataset, bucket: int, as_of_us: int) -> list[tuple[int, NDArray[np.int64]]]:
    """By user: the arrival numbers of the events at or after `as_of_us`, from the events themselves."""
    events = dataset.events
    return [
        (user, events.seq_N[(events.user_id_N == user) & (events.event_time_us_N >= as_of_us)])
        for user in users_in(dataset, DAYS, bucket).batch.user_id_B.tolist()
    ]


@pytest.mark.parametrize("day", [0, 3, DAYS + 1])
def test_a_state_may_hold_what_came_before_the_first_event_of_later(dataset: Dataset, day: int) -> None:
    as_of_us = dataset.day_start_us(day)
    for bucket in range(BUCKETS):
        found = users_in(dataset, day, bucket).whole_until_B
        expected = [seq_L.min() if len(seq_L) else 60 for _, seq_L in arrived(dataset, bucket, as_of_us)]
        np.testing.assert_array_equal(found, expected)


def test_the_table_of_other_recipes_is_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    """The column is all that states add: records, manifests' digests and rows are the same."""
    for states in (False, True):
        exported(dataset, 3, tmp_path / str(states), states=states)
    plain, more = (pq.read_table(tmp_path / str(states) / "bucket-00000.parquet") for states in (False, True))
    assert plain.schema.names == [*TABLE_SCHEMA.names, "inputs_digest"]
    assert more.schema.names == [*plain.schema.names, "state"]
    assert more.drop_columns("state").equals(plain)
    with pytest.raises(EpochError, match="holds no state"):
        next(read_bucket(tmp_path / "False", 0, "state"))
    assert next(read_bucket(tmp_path / "True", 0)).records == plain["value"].to_pylist()


def test_a_history_that_is_cut_off_has_no_state(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events, the model reads the newest 20: .*larger max_uih"):
        exported(dataset, 5, tmp_path, states=True, max_uih=20)
