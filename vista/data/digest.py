"""A digest of a table that depends on its rows, not on their order or on how files hold them."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

_WIDTHS = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}


def mix(*words: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """A 64-bit hash of each row of words: splitmix64's finaliser after every word. Not against attackers.

    >>> mix(np.arange(2, dtype=np.uint64), 7).tolist() == mix(np.arange(2, dtype=np.uint64), 7).tolist()
    True
    """
    state = np.full(1, 0x9E3779B97F4A7C15, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def row_sums(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """[3] number of rows and two sums of row hashes, modulo 2^64: sums of parts add up to the whole's."""
    if not frame.height:
        return np.zeros(3, np.uint64)
    hash_N = mix(*(_words(column) for column in frame.get_columns()))
    sums = [hash_N.sum(dtype=np.uint64), mix(hash_N).sum(dtype=np.uint64)]
    return np.array([frame.height, *sums], np.uint64)


def digest(sums: Iterable[NDArray[np.uint64]], names: Sequence[str]) -> str:
    """sha256 over `row_sums` and the names of the columns; 64 hexadecimal digits."""
    text = ",".join(names) + ";" + ",".join(str(int(value)) for part in sums for value in part)
    return hashlib.sha256(text.encode()).hexdigest()


def _words(column: pl.Series) -> NDArray[np.uint64]:
    """A column's bits as unsigned integers; a null is a word that no narrower type has."""
    missing = column.is_null().to_numpy() if column.has_nulls() else None
    if missing is not None:
        column = column.fill_null(0)
    bits = column.cast(pl.UInt8).to_numpy() if column.dtype == pl.Boolean else column.to_numpy()
    words = np.ascontiguousarray(bits).view(_WIDTHS[bits.dtype.itemsize]).astype(np.uint64)
    if missing is not None:
        words[missing] = np.uint64(0xFFFF_FFFF_FFFF_FFF7)
    return words
