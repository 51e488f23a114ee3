"""Files of the table on a local disk: whole or not at all, and typed errors."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from delivery_samples import record, users_of

from vista.errors import BackendError, InputError
from vista.summary.files import delete, digest, files_at, names_in, read, written
from vista.summary.table import verify_attempt, whole_shard, write_shard


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with written(tmp_path / "a" / "b", "file") as file:
        file.write(b"content")
        assert read(tmp_path / "a" / "b", "file") is None
    assert read(tmp_path / "a" / "b", "file") == b"content"
    assert digest(tmp_path / "a" / "b", "file") == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(BackendError, match="the disk may be full"):
        fill_the_disk(tmp_path)
    assert names_in(tmp_path) == ["a"], "nothing is left of it"


def fill_the_disk(directory: Path) -> None:
    with written(directory, "file") as file:
        file.write(b"content")
        raise OSError(errno.ENOSPC, "no space left on device")


def test_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert (read(nowhere, "file"), digest(nowhere, "file"), names_in(nowhere)) == (None, None, [])
    delete(nowhere)


@pytest.mark.parametrize("location", ["/proc/vista", "{home}/file/below"])
def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path, location: str) -> None:
    (tmp_path / "file").touch()
    users = np.array(users_of(0, 3))
    with pytest.raises(BackendError, match="not writable for this user"):
        write_shard(location.format(home=tmp_path), 0, users, users, users, [record(one) for one in users])


def test_an_unknown_scheme_is_the_callers_error() -> None:
    with pytest.raises(InputError, match="nonsense"):
        files_at("nonsense://bucket/table")


def test_a_uri_and_a_path_are_the_same_place(tmp_path: Path) -> None:
    users = np.array(users_of(0, 300))
    records = [record(user) for user in users.tolist()]
    by_uri = write_shard(f"file://{tmp_path}/attempt=x", 0, users, users, users, records)
    assert whole_shard(tmp_path / "attempt=x", 0) == by_uri
    assert verify_attempt(f"file://{tmp_path}/attempt=x", 1).rows == 300
    assert by_uri.file_digest == digest(tmp_path / "attempt=x", "bucket-00000.parquet")


def test_plain_pyarrow_reads_an_attempt_and_passes_over_its_manifests(tmp_path: Path) -> None:
    for bucket in (0, 1):
        users = np.array(users_of(bucket, 10))
        write_shard(tmp_path, bucket, users, users, users, [record(user) for user in users.tolist()])
    found = ds.dataset(tmp_path, format="parquet").to_table()
    assert found["user_id"].to_pylist() == users_of(0, 10) + users_of(1, 10)
    assert found["value"].to_pylist() == [record(user) for user in found["user_id"].to_pylist()]
