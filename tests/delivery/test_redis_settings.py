"""Redis with wrong settings, without rights, without memory: a typed error in time that says what to mend."""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from delivery_samples import BUCKETS, SPACES, record, tombstone, users_of
from refusals import refused

from infra.ports import free_block
from infra.processes import wait_until
from infra.redis import PRIMARY_NAME, Redis, running_cluster, running_redis, running_sentinel
from infra.servers import HOST
from infra.tls import Certificates, make_certificates
from vista.delivery.control import barrier, release_record, retirement
from vista.delivery.interfaces import Release
from vista.delivery.redis_store import PATIENCE_S
from vista.delivery.store import open_store
from vista.delivery.worker import MAX_BATCH_BYTES
from vista.errors import InputError
from vista.summary.record import Codec, Record, encode, payload_bytes, space_id

FAIL_OVER_S = 60.0
SPACE = SPACES[0]


@pytest.fixture(scope="module")
def certificates(servers_place: Path) -> Certificates:
    return make_certificates(servers_place / "redis-tls")


@pytest.fixture(scope="module")
def plain(servers_place: Path) -> Iterator[Redis]:
    with running_redis(servers_place / "redis-plain") as redis:
        yield redis


@pytest.fixture(scope="module")
def encrypted(servers_place: Path, certificates: Certificates) -> Iterator[Redis]:
    with running_redis(servers_place / "redis-encrypted", certificates) as redis:
        yield redis


def use(url: str) -> None:
    """What a worker does first, and a write."""
    (user,) = users_of(0, 1)
    store = open_store(url, BUCKETS)
    offset = store.state(0).offset
    assert store.apply(0, offset, offset + 1, [record(user)]).accepted
    assert store.get_many(SPACE, 1, [user]) == [record(user)]
    store.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("not the password\n")
    return path


def test_wrong_host_and_port(plain: Redis) -> None:
    port = plain.nodes[0].port
    with refused("check host and port"):
        use(plain.url.replace(f"{HOST}:{port}", f"redis.invalid:{port}"))
    closed = free_block(1)
    with refused("check host and port"):
        use(plain.url.replace(str(port), str(closed)))
    for kind, name in (("cluster", ""), ("sentinel", "/vista")):
        with refused("check host and port"):
            use(f"redis+{kind}://{HOST}:{closed},{HOST}:{closed + 1}{name}")


def test_a_server_that_does_not_answer(plain: Redis) -> None:
    known = open_store(plain.url, BUCKETS)
    known.get_many(SPACE, 1, [1])
    pid = plain.nodes[0].server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with refused("no answer"):
            use(plain.url)
        with refused("no answer"):
            known.get_many(SPACE, 1, [1])
        started_s = time.monotonic()
        with refused("no answer"):
            known.state(0, reading=True)
        assert time.monotonic() - started_s < PATIENCE_S
    finally:
        os.kill(pid, signal.SIGCONT)
    use(plain.url)


@pytest.mark.parametrize(
    ("kind", "name", "said"), [("cluster", "", "no answer"), ("sentinel", "/vista", "for 'vista'; no answer")]
)
def test_servers_that_all_say_nothing_are_an_error_in_time_and_keep_no_other_region_waiting(
    plain: Redis, kind: str, name: str, said: str
) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(6)]
        hosts = ",".join(f"{HOST}:{one.getsockname()[1]}" for one in silent)
        store = open_store(f"redis+{kind}://{hosts}{name}", BUCKETS)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        with refused(said):
            reading = pool.submit(store.get_many, SPACE, 1, [1])
            use(plain.url)
            assert not reading.done()
            reading.result()


def test_wrong_user_and_password(plain: Redis, secret: Path) -> None:
    for url in (
        plain.url.replace(str(plain.vista_password), str(secret)),
        plain.url.replace("vista@", "nobody@"),
        plain.url.partition("?")[0],
        plain.url.replace("vista@", "").partition("?")[0],
    ):
        with refused(r"the user in the URL or the password in \?password_file= is wrong"):
            use(url)


def test_a_user_without_rights(plain: Redis, tmp_path: Path) -> None:
    node = plain.nodes[0]
    (tmp_path / "weak").write_text("pass")
    url = f"redis://weak@{HOST}:{node.port}?password_file={tmp_path}/weak"
    for rights in (["~other:*", "+@all"], ["~s:*", "~w:*", "+@read", "+@connection", "+info"]):
        node.ask("ACL", "SETUSER", "weak", "reset", "on", ">pass", *rights)
        with refused("the user lacks rights"):
            use(url)


def test_certificates(encrypted: Redis, plain: Redis, certificates: Certificates, tmp_path: Path) -> None:
    use(encrypted.url)
    strange = make_certificates(tmp_path / "strange")
    with refused(r"not signed by \?ca="):
        use(encrypted.url.replace(str(certificates.authority), str(strange.authority)))
    with refused(r"not signed by \?ca="):
        use(encrypted.url.partition("&ca=")[0])
    with refused("write rediss instead of redis"):
        use(encrypted.url.replace("rediss:", "redis:").partition("&ca=")[0])
    with refused("with rediss that it speaks TLS"):
        use(f"{plain.url.replace('redis:', 'rediss:')}&ca={certificates.authority}")


def test_the_wrong_kind_of_url(plain: Redis) -> None:
    with refused(r"write redis instead of redis\+cluster"):
        use(plain.url.replace("redis:", "redis+cluster:"))
    with pytest.raises(InputError, match="only redis\\+sentinel has a name"):
        open_store(plain.url.replace("?", "/0?"), BUCKETS)
    with pytest.raises(InputError, match="only redis\\+sentinel has a name"):
        open_store("redis+sentinel://a:1", BUCKETS)
    with pytest.raises(InputError, match="several hosts"):
        open_store("redis://a:1,b:2", BUCKETS)
    with pytest.raises(InputError, match="'ca' is unknown"):
        open_store("redis://a:1?ca=x", BUCKETS)
    with pytest.raises(InputError, match="scheme is unknown"):
        open_store("redisx://a:1", BUCKETS)
    with pytest.raises(InputError, match="ca names no file"):
        use("rediss://a:1?ca=/no/such/file")


def test_sentinels_and_a_replica_with_tls(
    servers_place: Path, certificates: Certificates, secret: Path
) -> None:
    with running_sentinel(servers_place / "redis-sentinel", certificates) as redis:
        use(redis.url)
        with refused("the Sentinels watch no such primary"):
            use(redis.url.replace("/vista?", "/other?"))
        with refused("is wrong"):
            use(redis.url.replace(str(redis.vista_password), str(secret)))
        options = redis.url.partition("?")[2]
        with refused("this is a replica"):
            use(f"rediss://vista@{HOST}:{redis.nodes[1].port}?{options}")
        store = open_store(redis.url, BUCKETS)
        offset = store.state(0).offset
        redis.sentinels[0].ask("SENTINEL", "FAILOVER", PRIMARY_NAME)
        primary = redis.nodes[1]
        assert wait_until(lambda: primary.fields("INFO", "replication")["role"] == "master", FAIL_OVER_S)
        assert store.apply(0, offset, offset + 1, []).accepted, "the primary that steps down is waited for"
        assert store.state(0).offset == offset + 1


def test_a_cluster_with_tls(servers_place: Path, certificates: Certificates, secret: Path) -> None:
    with running_cluster(servers_place / "redis-cluster", certificates) as redis:
        use(redis.url)
        alone = f"rediss://vista@{HOST}:{redis.nodes[0].port}?{redis.url.partition('?')[2]}"
        with refused(r"a Cluster needs redis\+cluster"):
            for bucket in range(BUCKETS):
                open_store(alone, BUCKETS).state(bucket)
        with refused("is wrong"):
            use(redis.url.replace(str(redis.vista_password), str(secret)))


def test_a_cluster_that_falls_silent_is_an_error_in_time(servers_place: Path) -> None:
    with running_cluster(servers_place / "redis-silent") as redis:
        known = open_store(redis.url, BUCKETS)
        known.state(0)
        for node in redis.nodes:
            os.kill(node.server.pid, signal.SIGSTOP)
        try:
            with refused("no answer"):
                known.state(0)
        finally:
            for node in redis.nodes:
                os.kill(node.server.pid, signal.SIGCONT)


def test_a_release_of_a_newer_version_is_read_without_its_new_keys_and_a_damaged_one_is_an_error(
    plain: Redis,
) -> None:
    plain.wipe()
    release = Release(id="r-1", space=SPACE, epoch=1, foundation="f", downstream="d")
    store = open_store(plain.url, BUCKETS)
    store.apply(0, 0, 1, [release_record(release)])
    newer = json.dumps(release.model_dump() | {"rollout": "half"})
    plain.nodes[0].ask("HSET", "w:{0}", "release", newer)
    assert store.state(0).release == release
    plain.nodes[0].ask("HSET", "w:{0}", "release", newer[:20])
    with refused(r"what bucket 0 keeps is damaged \(.*: empty this Redis, it refills from the log"):
        store.state(0)
    plain.wipe()


@pytest.mark.parametrize(
    ("setting", "wrong", "right", "said"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "set it to noeviction"),
        ("maxmemory", "0", "8gb", "maxmemory is 0"),
    ],
)
def test_memory_settings_that_forget_records(
    plain: Redis, setting: str, wrong: str, right: str, said: str
) -> None:
    node = plain.nodes[0]
    node.ask("CONFIG", "SET", setting, wrong)
    node.ask("FUNCTION", "FLUSH")  # as on a new server, where `apply` comes first
    (user,) = users_of(0, 1)
    try:
        with refused(said):
            open_store(plain.url, BUCKETS).state(0)
        with refused(said):
            open_store(plain.url, BUCKETS).apply(0, 0, 1, [record(user)])
    finally:
        node.ask("CONFIG", "SET", setting, right)
    use(plain.url)


def test_a_full_store_takes_a_batch_whole_or_not_at_all_and_loses_nothing(plain: Redis) -> None:
    node = plain.nodes[0]
    plain.wipe()
    users = users_of(0, 3_000)
    stream = [record(user) for user in users]
    store, offset, batch = open_store(plain.url, BUCKETS), 0, 50
    assert store.apply(0, 0, batch, stream[:batch]).accepted
    before_bytes = store.state(0).free_bytes
    limit_bytes = int(node.fields("INFO", "memory")["used_memory"]) + 300_000
    node.ask("CONFIG", "SET", "maxmemory", str(limit_bytes))
    try:
        assert store.state(0).free_bytes < 1_000_000 < before_bytes
        with refused("retire an older epoch or raise maxmemory"):
            for offset in range(batch, len(stream), batch):
                assert store.apply(0, offset, offset + batch, stream[offset : offset + batch]).accepted
        state = store.state(0)
        assert state.offset == offset > batch
        assert next(iter(state.epochs.values())).users == offset, "nothing of the refused batch"
        assert store.get_many(SPACE, 1, users) == [*stream[:offset], *[None] * (len(users) - offset)]
        assert node.ask("KEYS", "s:new:*") == ""
    finally:
        node.ask("CONFIG", "SET", "maxmemory", "8gb")
    assert store.apply(0, offset, len(stream), stream[offset:]).accepted
    assert store.get_many(SPACE, 1, users) == stream


def test_a_store_without_any_memory_left_can_be_made_room_in(plain: Redis) -> None:
    """What is left is taken by another program: retiring an epoch is the remedy, so it gets through."""
    node = plain.nodes[0]
    plain.wipe()
    users = users_of(0, 1_000)
    store, spare = open_store(plain.url, BUCKETS), barrier(SPACE, 2)
    assert store.apply(0, 0, 1_000, [record(user) for user in users]).accepted
    node.ask("CONFIG", "SET", "maxmemory", str(int(node.fields("INFO", "memory")["used_memory"]) - 100_000))
    try:
        assert store.state(0).free_bytes == 0
        with refused("retire an older epoch or raise maxmemory"):
            store.apply(0, 1_000, 1_001, [record(users[0], epoch=2)])
        assert store.apply(0, 1_000, 1_002, [retirement(SPACE, 1), spare]).accepted
        assert store.retire(SPACE, 1) == 1_000
        state = store.state(0)
        assert state.free_bytes > 0
        assert state.offset == 1_002
        assert state.floors == {SPACE: 2}
        assert store.apply(0, 1_002, 1_003, [record(users[0], epoch=2)]).accepted
    finally:
        node.ask("CONFIG", "SET", "maxmemory", "8gb")


def test_a_retirement_whose_answer_was_lost_is_announced_again(plain: Redis) -> None:
    plain.wipe()
    (user,) = users_of(0, 1)
    batch = [record(user), barrier(SPACE, 1), retirement(SPACE, 1)]
    first = open_store(plain.url, BUCKETS).apply(0, 0, 3, batch)
    again = open_store(plain.url, BUCKETS).apply(0, 0, 3, batch)
    assert (first.accepted, again.accepted, again.offset) == (True, False, 3)
    assert first.retirements == again.retirements == ((SPACE, 1),)


def test_a_batch_as_large_as_a_worker_reads(plain: Redis) -> None:
    """4 MiB, of the smallest records and of summaries of 128 seeds."""
    plain.wipe()
    store, smallest = open_store(plain.url, BUCKETS), tombstone(users_of(1, 1)[0], 0)
    count = MAX_BATCH_BYTES // len(smallest)
    applied = store.apply(1, 0, count, [smallest] * count)
    assert (applied.written, applied.older) == (1, count - 1)
    shape, draw = {"codec": Codec.INT8, "seeds": 128, "width": 256}, random.Random(0)
    users = users_of(2, MAX_BATCH_BYTES // payload_bytes(**shape))
    large = [
        encode(
            Record(space_id=space_id(SPACE), epoch=1, user_id=user, payload=draw.randbytes(33_024), **shape)
        )
        for user in users
    ]
    assert store.apply(2, 0, len(large), large).written == len(users) == 127
    assert store.get_many(SPACE, 1, users) == large
