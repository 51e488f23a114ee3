"""SQL through HiveServer2, and what the tests put below its tables."""

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from delivery_samples import BUCKETS, SPACES
from impala.dbapi import connect

from infra.hive import HiveServer
from infra.servers import HOST
from vista.data.schema import buckets_of
from vista.delivery.interfaces import Catalog, Epoch
from vista.delivery.publish import export_id
from vista.summary.codec import Codec
from vista.summary.record import Record, encode, space_id
from vista.summary.table import write_shard

ANSWER_S = 600.0
"""The first query and the first aggregate of a fresh server take up to a minute on two idle cores."""


class Sql:
    """One session."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())


@contextmanager
def session(server: HiveServer) -> Iterator[Sql]:
    password = server.vista_password.read_text()
    plain = {"auth_mechanism": "PLAIN", "user": "vista", "password": password}
    with closing(connect(HOST, server.port, timeout=ANSWER_S, **plain)) as connection:
        yield Sql(connection)


def open_epoch(catalog: Catalog, number: int, *, buckets: int = BUCKETS) -> Epoch:
    """The `number`th export of a space."""
    as_of_us = 1_000 * number
    return catalog.open_epoch(
        space=SPACES[0], export_id=export_id(SPACES[0], "digest", as_of_us, "int8"), as_of_us=as_of_us,
        trained_until_us=500, checkpoint="checkpoint", codec="int8", buckets=buckets,
    )  # fmt: skip


def write_rows(attempt: Path | str, epoch: Epoch, users: int, seeds: int, width: int) -> dict[int, str]:
    """All shards of an epoch, with random summaries; the SHA-256 of each user's record."""
    hashes: dict[int, str] = {}
    random, scales = np.random.default_rng(epoch.epoch), np.ones(seeds, "<f2").tobytes()
    bucket_U = buckets_of(np.arange(users), epoch.buckets)
    for bucket in range(epoch.buckets):
        user_id_B = np.flatnonzero(bucket_U == bucket)
        records = [
            encode(
                Record(
                    space_id=space_id(epoch.space), epoch=epoch.epoch, user_id=user, seq=user,
                    as_of_us=epoch.as_of_us, event_time_us=epoch.as_of_us - 1, codec=Codec.INT8, seeds=seeds,
                    width=width, payload=scales + random.bytes(seeds * width),
                )
            )
            for user in user_id_B.tolist()
        ]  # fmt: skip
        write_shard(attempt, bucket, user_id_B, user_id_B, user_id_B * 0 + epoch.as_of_us - 1, records)
        hashes |= {
            user: hashlib.sha256(data).hexdigest()
            for user, data in zip(user_id_B.tolist(), records, strict=True)
        }
    return hashes
