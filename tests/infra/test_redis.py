"""Redis: what its users may do, what TLS keeps out, and that a killed primary is replaced."""

import hashlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from infra.processes import wait_until
from infra.redis import PRIMARY_NAME, Node, Redis, running_cluster, running_redis, running_sentinel
from infra.servers import HOST
from infra.tls import Certificates, make_certificates
from vista.errors import BackendError

FAIL_OVER_S = 60.0  # 2-4 s on two idle cores
FUNCTION = """#!lua name=probe
redis.register_function('probe', function(keys) return redis.call('GET', keys[1]) end)
"""


def vista(redis: Redis, node: Node) -> Node:
    """The node, asked by the user of the stores."""
    return replace(node, user="vista", password=redis.vista_password.read_text())


def test_vista_may_use_the_keys_of_stores_and_nothing_else(place: Path) -> None:
    with running_redis(place) as redis:
        node = vista(redis, redis.nodes[0])
        assert node.password not in repr(redis) + repr(node)
        assert redis.nodes[0].password not in repr(redis)
        assert node.ask("SET", "s:1:2:{3}:4", "summary") == "OK"
        assert node.ask("GET", "s:1:2:{3}:4") == "summary"
        assert node.ask("FUNCTION", "LOAD", FUNCTION) == "probe"
        assert node.ask("FCALL", "probe", "1", "s:1:2:{3}:4") == "summary"
        for words in (
            ["SET", "other", "1"],
            ["FLUSHALL"],
            ["KEYS", "*"],
            ["CONFIG", "SET", "save", "1 1"],
            ["EVAL", "return 1", "0"],
        ):
            with pytest.raises(BackendError, match="NOPERM"):
                node.ask(*words)
        with pytest.raises(BackendError, match="NOPERM"):
            node.ask("FCALL", "probe", "1", "other")
        with pytest.raises(BackendError, match="WRONGPASS"):
            replace(node, password="wrong").ask("PING")


def test_tls_keeps_out_plaintext_strangers_and_the_nameless(place: Path) -> None:
    trusted, strange = make_certificates(place / "tls"), make_certificates(place / "strange")
    with running_redis(place / "redis", trusted) as redis:
        node = redis.nodes[0]
        with pytest.raises(BackendError):
            replace(node, certificates=None).ask("PING")
        with pytest.raises(BackendError, match="certificate verify failed"):
            replace(node, certificates=strange).ask("PING")
        assert _ping(node.port, trusted).startswith(b"-NOAUTH")


def _ping(port: int, certificates: Certificates) -> bytes:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with (
        socket.create_connection((HOST, port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"PING\r\n")
        return connection.recv(100)


def test_sentinel_replaces_a_killed_primary_and_takes_it_back_as_a_replica(place: Path) -> None:
    with running_sentinel(place) as redis:
        primary, replica = redis.nodes
        primary.ask("SET", "s:kept", "1")
        assert primary.ask("WAIT", "1", "10000") == "1"
        primary.server.kill()
        assert wait_until(lambda: _primary_port(redis) == replica.port, FAIL_OVER_S)
        assert wait_until(lambda: replica.fields("INFO", "replication")["role"] == "master", FAIL_OVER_S)
        assert replica.ask("GET", "s:kept") == "1"
        assert replica.ask("SET", "s:later", "2") == "OK"
        primary.server.start()
        primary.server.wait()
        assert wait_until(
            lambda: primary.fields("INFO", "replication").get("master_link_status") == "up", FAIL_OVER_S
        )
        assert primary.ask("GET", "s:later") == "2"


def _primary_port(redis: Redis) -> int:
    asked = redis.sentinels[0].ask("SENTINEL", "get-master-addr-by-name", PRIMARY_NAME)
    return int(asked.split()[1])


def test_a_cluster_replaces_a_killed_primary(place: Path) -> None:
    with running_cluster(place) as redis:
        keys = [f"s:{number}" for number in range(30)]
        for key in keys:
            assert redis.nodes[0].ask("-c", "SET", key, hashlib.sha256(key.encode()).hexdigest()) == "OK"
        first = redis.nodes[0]
        assert first.ask("WAIT", "1", "10000") == "1"
        first.server.kill()
        others = redis.nodes[1:]
        assert wait_until(lambda: _primaries(others) == 3, FAIL_OVER_S)
        assert wait_until(
            lambda: all(node.fields("CLUSTER", "INFO")["cluster_state"] == "ok" for node in others),
            FAIL_OVER_S,
        )
        for key in keys:
            assert others[0].ask("-c", "GET", key) == hashlib.sha256(key.encode()).hexdigest()


def _primaries(nodes: Sequence[Node]) -> int:
    return sum(node.fields("INFO", "replication")["role"] == "master" for node in nodes)
