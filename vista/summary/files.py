"""Files of the table, on a local disk or wherever pyarrow reaches (`s3://bucket/prefix`, `hdfs://`, `gs://`).

Keys and endpoint of S3 come from the environment, as Amazon's own clients read them; without AWS_ENDPOINT_URL
the bucket itself is asked for its region.
"""

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import pyarrow as pa
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileSelector,
    FileSystem,
    FileType,
    LocalFileSystem,
    S3FileSystem,
)

from vista.errors import BackendError, InputError

READ_AHEAD_BYTES = 2**24

FIRST_ANSWER_S, FIRST_TRIES = 2.5, 2
"""Of a bucket when it is first used: a wrong setting is an error in time. What comes later is waited for as
pyarrow does, which may take minutes."""


class Digesting(io.RawIOBase):
    """Passes on what is written, and digests it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink, self.sha256 = sink, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        self._sink.write(data)
        return len(data)


def files_at(location: Path | str) -> tuple[FileSystem, str]:
    """The file system of a location, and the path there. Raises `InputError` for an unknown scheme,
    `BackendError`."""
    if "://" not in str(location):
        return LocalFileSystem(), str(location)
    with mapped(location):
        return _remote_files_at(str(location))


@lru_cache(maxsize=64)
def _remote_files_at(location: str) -> tuple[FileSystem, str]:
    try:
        files, path = FileSystem.from_uri(location)
    except pa.ArrowInvalid as error:
        raise InputError(f"location {location!r}: {error}") from error
    if isinstance(files, S3FileSystem):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        _check_bucket(path.partition("/")[0], files.region, endpoint)
    return files, path


@lru_cache(maxsize=64)
def _check_bucket(bucket: str, region: str, endpoint: str | None) -> None:
    """Raises `OSError` for one that is not there or cannot be reached."""
    impatient = S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=FIRST_ANSWER_S,
        request_timeout=FIRST_ANSWER_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=FIRST_TRIES),
    )
    if impatient.get_file_info(bucket).type == FileType.NotFound:
        raise FileNotFoundError(f"there is no bucket {bucket}")


@contextmanager
def written(location: Path | str, name: str) -> Iterator[IO[bytes]]:
    """A file to write. On a local disk it appears whole or not at all, and durably; elsewhere when it is
    closed, so that only a manifest says whether it is whole. Raises `BackendError`."""
    files, path = files_at(location)
    with mapped(location):
        if isinstance(files, LocalFileSystem):
            with _written_whole(Path(path), name) as file:
                yield file
        else:
            with files.open_output_stream(f"{path}/{name}") as file:
                yield file


@contextmanager
def _written_whole(directory: Path, name: str) -> Iterator[IO[bytes]]:
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f".{name}.{uuid.uuid4().hex}"
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(directory / name)
    finally:
        unfinished.unlink(missing_ok=True)


def read(location: Path | str, name: str) -> bytes | None:
    """What a file holds, or None if it is not there. Raises `BackendError`."""
    files, path = files_at(location)
    with mapped(location):
        try:
            with files.open_input_stream(f"{path}/{name}") as file:
                content: bytes = file.read()
        except FileNotFoundError:
            return None
    return content


def digest(location: Path | str, name: str) -> str | None:
    """The SHA-256 of a file, or None if it is not there. Raises `BackendError`."""
    files, path = files_at(location)
    with mapped(location):
        try:
            with files.open_input_stream(f"{path}/{name}", buffer_size=READ_AHEAD_BYTES) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None


def names_in(location: Path | str) -> list[str]:
    """What lies right below a location, sorted; nothing if it is not there. Raises `BackendError`."""
    files, path = files_at(location)
    with mapped(location):
        found = files.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def delete(location: Path | str) -> None:
    """Delete a folder or a file with all that is below it, if it is there. Raises `BackendError`."""
    files, path = files_at(location)
    with mapped(location):
        kind = files.get_file_info(path).type
        if kind == FileType.Directory:
            files.delete_dir(path)
        elif kind == FileType.File:
            files.delete_file(path)


@contextmanager
def mapped(location: Path | str) -> Iterator[None]:
    """Errors of a file system as `BackendError`."""
    try:
        yield
    except OSError as error:
        remedy = "the disk may be full, or the folder not writable for this user"
        if str(location).startswith("s3://"):
            remedy = "check the bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise BackendError(f"{location}: {error}; {remedy}") from error
