"""Shards of the table: whole or not at all, and nothing wrong passes the committer."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from delivery_samples import BUCKETS, SPACES, publish_epoch, record, users_of, write_attempt

from vista.delivery.catalog import open_catalog
from vista.delivery.interfaces import Epoch
from vista.delivery.publish import attempt_directory, commit, export_id
from vista.errors import EpochError
from vista.summary.table import read_bucket, shards_of, verify_attempt, whole_shard, write_shard


def rows(users: list[int], bucket: int, directory: Path) -> None:
    ids = np.array(users, np.int64)
    write_shard(directory, bucket, ids, ids + 1, ids + 2, [record(user) for user in users])


def attempt(directory: Path, users: int = 30) -> Path:
    for bucket in range(BUCKETS):
        rows(users_of(bucket, users), bucket, directory)
    return directory


def test_a_shard_comes_back_in_order_of_user_and_by_row_groups(tmp_path: Path) -> None:
    users = users_of(1, 1_500)
    shuffled = np.random.default_rng(0).permutation(users).tolist()
    rows(shuffled, 1, tmp_path)
    parts = list(read_bucket(tmp_path, 1))
    assert [len(part.records) for part in parts] == [1_024, 476]
    assert np.concatenate([part.user_id_B for part in parts]).tolist() == users
    assert np.concatenate([part.seq_B for part in parts]).tolist() == [user + 1 for user in users]
    assert [data for part in parts for data in part.records] == [record(user) for user in users]
    shard = whole_shard(tmp_path, 1)
    assert shard is not None
    assert (shard.rows, shard.min_user_id, shard.max_user_id) == (1_500, users[0], users[-1])
    assert shard.value_bytes == sum(len(record(user)) for user in users)


def test_the_same_rows_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    users = users_of(0, 50)
    rows(users, 0, tmp_path / "one")
    rows(users[::-1], 0, tmp_path / "two")
    for name in ("bucket-00000.parquet", "_bucket-00000.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_empty_bucket_is_a_shard_too(tmp_path: Path) -> None:
    rows([], 2, tmp_path)
    assert list(read_bucket(tmp_path, 2)) == []
    shard = whole_shard(tmp_path, 2)
    assert shard is not None
    assert (shard.rows, shard.min_user_id) == (0, None)


def test_a_shard_without_manifest_is_not_whole(tmp_path: Path) -> None:
    assert whole_shard(tmp_path, 0) is None
    rows(users_of(0, 3), 0, tmp_path)
    (tmp_path / "_bucket-00000.json").unlink()
    assert whole_shard(tmp_path, 0) is None


def test_an_attempt_is_verified_as_a_whole(tmp_path: Path) -> None:
    verified = verify_attempt(attempt(tmp_path), BUCKETS)
    assert verified.rows == 30 * BUCKETS
    assert verified.shards == shards_of(tmp_path, BUCKETS)
    other = verify_attempt(attempt(tmp_path / "other", users=29), BUCKETS)
    assert verified.digest != other.digest


def test_what_is_wrong_with_an_attempt_is_found(tmp_path: Path) -> None:
    good = attempt(tmp_path / "good")
    bad = tmp_path / "bad"

    def fails(message: str) -> None:
        with pytest.raises(EpochError, match=message):
            verify_attempt(bad, BUCKETS)
        shutil.rmtree(bad)
        shutil.copytree(good, bad)

    shutil.copytree(good, bad)
    (bad / "_bucket-00002.json").unlink()
    fails(r"lacks 1 of 4 shards \(first: bucket 2\)")
    (bad / "bucket-00001.parquet").unlink()
    fails("is not the file of its manifest")
    (bad / "bucket-00001.parquet").write_bytes((good / "bucket-00001.parquet").read_bytes()[:-1])
    fails("is not the file of its manifest")
    (bad / "_bucket-00001.json").write_text("{}")
    fails("is no manifest")
    shutil.copy(good / "bucket-00001.parquet", bad / "bucket-00007.parquet")
    fails("is none of the 4 buckets")
    rows([*users_of(0, 5), *users_of(3, 1)], 0, bad)
    fails("belongs to bucket 3 of 4")
    shard = whole_shard(bad, 0)
    assert shard is not None
    (bad / "_bucket-00000.json").write_text(shard.model_copy(update={"rows": 31}).model_dump_json())
    fails("holds 30 users, its manifest 31")
    assert verify_attempt(bad, BUCKETS).rows == 30 * BUCKETS


def test_a_user_twice_in_a_bucket_is_refused(tmp_path: Path) -> None:
    (user,) = users_of(0, 1)
    with pytest.raises(EpochError, match=f"user {user} is twice in bucket 0"):
        rows([user, user], 0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_epoch_error(tmp_path: Path) -> None:
    with pytest.raises(EpochError, match="was the epoch deleted"):
        list(read_bucket(tmp_path, 0))


def test_commit_publishes_what_was_verified(tmp_path: Path) -> None:
    published = publish_epoch(tmp_path, users=40)
    verified = verify_attempt(Path(published.location), BUCKETS)
    assert (published.published, published.rows, published.digest) == (True, 40, verified.digest)
    assert publish_epoch(tmp_path, users=40) == published, "a rerun changes nothing"


def test_commit_refuses_a_part_and_publishes_nothing(tmp_path: Path) -> None:
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        epoch = open_one(tmp_path)
        part = Path(attempt_directory(tmp_path, epoch, "part"))
        write_attempt(part, epoch, users=40)
        (part / "_bucket-00003.json").unlink()
        with pytest.raises(EpochError, match="bucket 3"):
            commit(catalog, epoch, part)
        assert catalog.list_epochs(SPACES[0]) == [epoch]
        assert part.is_dir(), "the export can go on"


def test_a_late_attempt_is_deleted_even_if_it_is_a_part(tmp_path: Path) -> None:
    published = publish_epoch(tmp_path)
    with closing(open_catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        late = Path(attempt_directory(tmp_path / "warehouse", published, "late"))
        rows(users_of(0, 3), 0, late)
        assert commit(catalog, published, late) == published
    assert not late.exists()
    assert Path(published.location).is_dir()


def open_one(home: Path) -> Epoch:
    with closing(open_catalog(f"sqlite:///{home}/catalog.db")) as catalog:
        return catalog.open_epoch(
            space=SPACES[0], export_id=export_id(SPACES[0], "c", 1_000, "int8"), as_of_us=1_000,
            trained_until_us=1, checkpoint="c", codec="int8", buckets=BUCKETS,
        )  # fmt: skip
