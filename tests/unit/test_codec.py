"""Quantisation: bounds of its error on several distributions, limits, and what is refused."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from vista.errors import InputError, RecordError
from vista.summary.codec import codec_of, decode_summary, dequantise, encode_summaries, quantise
from vista.summary.record import Codec, Control, Record, encode, payload_bytes

SEEDS, WIDTH = 128, 256


def sample(kind: str) -> NDArray[np.float32]:
    """32 users: Gaussian, Student t with 4 degrees of freedom, or Gaussian with 4 dimensions of 10 sigma."""
    rng = np.random.default_rng(7)
    shape = (32, SEEDS, WIDTH)
    values = rng.standard_t(4, shape) if kind == "t4" else rng.standard_normal(shape)
    if kind == "outlier":
        values[..., :4] *= 10
    return values.astype(np.float32)


@pytest.mark.must_hold(12)
@pytest.mark.parametrize(
    ("codec", "kind", "largest_error"),
    # what the codecs were chosen by, and 5%; outliers are 4 dimensions at 10 sigma
    [(Codec.BF16, "gaussian", 0.0018), (Codec.BF16, "t4", 0.0018), (Codec.BF16, "outlier", 0.0018),
     (Codec.INT8, "gaussian", 0.0080), (Codec.INT8, "t4", 0.0137), (Codec.INT8, "outlier", 0.0280)],
)  # fmt: skip
def test_relative_error_and_cosine(codec: Codec, kind: str, largest_error: float) -> None:
    summary_BSD = sample(kind)
    found_BSD = dequantise(quantise(summary_BSD, codec), codec, SEEDS, WIDTH)
    error = np.linalg.norm(found_BSD - summary_BSD) / np.linalg.norm(summary_BSD)
    assert error <= largest_error
    dot_BS = (found_BSD * summary_BSD).sum(axis=2)
    cosine_BS = dot_BS / (np.linalg.norm(found_BSD, axis=2) * np.linalg.norm(summary_BSD, axis=2))
    assert cosine_BS.min() >= 0.999


def test_uneven_seeds_keep_their_direction() -> None:
    """One scale per tensor would give cosine 0 here."""
    summary_BSD = sample("gaussian") * np.logspace(-6, 3, SEEDS, dtype=np.float32)[:, None]
    found_BSD = dequantise(quantise(summary_BSD, Codec.INT8), Codec.INT8, SEEDS, WIDTH)
    # the smallest scales are fp16 subnormals, which are coarse: hence 1e-6, not 1e-9
    cosine_BS = (found_BSD * summary_BSD).sum(2) / (
        np.linalg.norm(found_BSD, axis=2) * np.linalg.norm(summary_BSD, axis=2)
    )
    assert cosine_BS[:, 40:].min() >= 0.999
    assert cosine_BS.min() >= 0.99


def test_stored_sizes_stay_in_redis_size_class() -> None:
    records = encode_summaries(
        sample("gaussian"), space_id=1, epoch=1, as_of_us=2, user_id_B=np.arange(32), seq_B=np.arange(32),
        event_time_us_B=np.arange(32), codec=Codec.INT8, zstd=True,
    )  # fmt: skip
    assert max(map(len, records)) <= 32_762


finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=True)


@given(
    npst.arrays(
        np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8)), elements=finite
    )
)
@example(np.full((1, 1, 1), 1e-45, np.float32))  # divided by 127 it is 0 in float32
def test_int8_is_off_by_half_a_step_at_most(summary_BSD: NDArray[np.float32]) -> None:
    _, seeds, width = summary_BSD.shape
    payload_BP = quantise(summary_BSD, Codec.INT8)
    step_BS = payload_BP[:, : 2 * seeds].copy().view(np.float16).astype(np.float64)
    found_BSD = dequantise(payload_BP, Codec.INT8, seeds, width).astype(np.float64)
    # half a step, and what float32 loses in dividing and multiplying (2 ulp of 127 steps)
    assert (np.abs(found_BSD - summary_BSD) <= step_BS[:, :, None] * (0.5 + 127 * 2**-22)).all()
    largest_BS = np.abs(summary_BSD).max(axis=2).astype(np.float64)
    assert (step_BS * 127 * (1 + 2**-22) >= largest_BS).all(), "no value is clipped"


@given(npst.arrays(np.float32, (2, 2, 3), elements=finite), st.sampled_from([Codec.BF16, Codec.INT8]))
def test_quantising_again_changes_nothing(summary_BSD: NDArray[np.float32], codec: Codec) -> None:
    once = dequantise(quantise(summary_BSD, codec), codec, 2, 3)
    if codec is Codec.BF16:
        assert np.array_equal(dequantise(quantise(once, codec), codec, 2, 3), once)
    assert np.array_equal(np.sign(once) * np.sign(summary_BSD) >= 0, np.ones_like(once, bool))


def test_zeros_stay_zeros_and_the_sign_of_int8_is_symmetric() -> None:
    rows_BSD = np.array([[[0, 0, 0], [1, -1, 0.5]]], np.float32)
    found = dequantise(quantise(rows_BSD, Codec.INT8), Codec.INT8, 2, 3)
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 1, 0] == -found[0, 1, 1]


def test_bf16_rounds_to_nearest_even() -> None:
    wanted = {1.00390625: 1.0, 1.01171875: 1.015625, -1.00390625: -1.0, 1.004: 1.0078125}
    rows = np.array(list(wanted), np.float32).reshape(1, 1, -1)
    assert dequantise(quantise(rows, Codec.BF16), Codec.BF16, 1, 4)[0, 0].tolist() == list(wanted.values())


@pytest.mark.parametrize("codec", [Codec.BF16, Codec.INT8])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(codec: Codec, value: float) -> None:
    summary_BSD = np.zeros((3, 2, 4), np.float32)
    summary_BSD[2, 1, 3] = value
    with pytest.raises(InputError, match="row 2 holds nan or infinity"):
        quantise(summary_BSD, codec)


def test_values_beyond_a_codec_are_refused() -> None:
    largest = np.full((1, 1, 2), 65_504 * 127, np.float32)
    assert dequantise(quantise(largest, Codec.INT8), Codec.INT8, 1, 2)[0, 0, 0] == 65_504 * 127
    with pytest.raises(InputError, match="use bf16"):
        quantise(largest * 2, Codec.INT8)
    with pytest.raises(InputError, match="bf16 ends at"):
        quantise(np.full((1, 1, 2), np.finfo(np.float32).max, np.float32), Codec.BF16)


def test_payloads_are_checked_and_may_come_one_by_one() -> None:
    payload_BP = quantise(sample("gaussian")[:3], Codec.INT8)
    together = dequantise(payload_BP, Codec.INT8, SEEDS, WIDTH)
    one_by_one = dequantise([row.tobytes() for row in payload_BP], Codec.INT8, SEEDS, WIDTH)
    assert np.array_equal(together, one_by_one)
    with pytest.raises(RecordError, match="33024 bytes of INT8 128 x 256"):
        dequantise([b"short"], Codec.INT8, SEEDS, WIDTH)
    assert dequantise([], Codec.BF16, 4, 8).shape == (0, 4, 8)
    assert quantise(np.zeros((0, 4, 8), np.float32), Codec.INT8).shape == (0, payload_bytes(Codec.INT8, 4, 8))


def test_a_record_without_vectors_is_no_summary() -> None:
    with pytest.raises(RecordError, match="holds no summary"):
        decode_summary(encode(Record(space_id=1, epoch=1, control=Control.BARRIER, payload=b"{}")))


def test_codecs_have_names() -> None:
    assert codec_of("int8") is Codec.INT8
    with pytest.raises(InputError, match="'fp4' does not exist: choose one of bf16, int8"):
        codec_of("fp4")
