"""The nodes of a region's Redis: one server, a primary below Sentinels, or a Cluster, chosen by the URL.

redis://USER@HOST:PORT, redis+sentinel://USER@HOST:PORT,HOST:PORT/PRIMARY, redis+cluster://USER@HOST:PORT,...;
rediss instead of redis for TLS. The Sentinels take the same password, without a user. What a node says is
mapped to `BackendError` here.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from redis import Redis, RedisCluster, exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from vista.delivery.address import Address, shown
from vista.errors import BackendError, InputError

SCHEMES = tuple(f"{base}{kind}" for base in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster"))
CONNECT_S, ANSWER_S = 1.0, 3.0
"""The nodes that are asked where the keys are share the time for an answer: with a patience of 5 s at most 9
s pass until a wrong setting is an error."""
ASKED = 3
"""Nodes of a known Cluster that are asked anew where the keys are."""
PAUSE_S = 0.1

_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,  # and its child MovedError
    exceptions.RedisClusterException,
)
"""What a failover or a change of a Cluster answers for some seconds, unless a setting is wrong."""

_WRONG_SETTINGS = (
    (r"certificate", "the certificate is not signed by ?ca=, or not for this host"),
    (
        r"AuthenticationError|username-password|Authentication required",
        "the user in the URL or the password in ?password_file= is wrong",
    ),
    (r"NoPermissionError", "the user lacks rights: give those of infra/conf/redis/users.acl"),
    (r"No master found for '[^']*'$", "the Sentinels watch no such primary: correct the name after the /"),
    (r"Cluster mode is not enabled", "the server is in no Cluster: write redis instead of redis+cluster"),
    (r"unknown command", "the server must be Redis 7 or Valkey"),
)
_OUTAGES = (
    (r"ReadOnlyError", "this is a replica: name its primary, or the Sentinels with redis+sentinel"),
    (r"OutOfMemoryError|OOM command", "maxmemory is reached: retire an older epoch or raise maxmemory"),
    (r"(Moved|Ask|TryAgain)Error", "a Cluster needs redis+cluster; while a slot moves, try again later"),
    (r"closed by server|reset by peer", "the server ended, or takes only TLS: write rediss instead of redis"),
    (
        r"TimeoutError|timed out",
        "no answer: check host, port, the server's load, with rediss that it speaks TLS",
    ),
    (r"ConnectionError|RedisClusterException", "check host and port, and that the server runs"),
)
"""Pattern in the classes and texts of an error and of those behind it, and what to do."""

P = ParamSpec("P")
T = TypeVar("T")


class Nodes:
    """Where each key is. Connections are made when first used, and again after a fork."""

    def __init__(self, url: str) -> None:
        """Raises `InputError` for a URL that names none."""
        options = {"password_file"} | ({"ca"} if url.startswith("rediss") else set())
        self.url = url
        self._connected: Redis | RedisCluster | None = None
        self.address = Address.parse(url, options=frozenset(options))
        if self.address.scheme not in SCHEMES:
            raise InputError(
                f"store URL {shown(url)!r}: the scheme is unknown; use one of {', '.join(SCHEMES)}"
            )
        kind = self.address.scheme.partition("+")[2]
        if bool(self.address.name) != (kind == "sentinel"):
            raise InputError(
                f"store URL {shown(url)!r}: only redis+sentinel has a name after the /, the primary's"
            )
        if not kind and len(self.address.hosts) != 1:
            raise InputError(f"store URL {shown(url)!r}: several hosts need redis+sentinel or redis+cluster")

    def primary(self, key: str) -> Redis:
        """The node that is asked for a key now."""
        client = self._client
        if isinstance(client, Redis):
            return client
        return client.get_redis_connection(client.get_node_from_key(key))

    def ask(self, patience_s: float, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `action` gives; it is done again while a failover may be under way, at most so long.

        Raises `BackendError`.
        """
        end_s, failed = time.monotonic() + patience_s, False
        with self._mapped():
            while True:
                try:
                    if failed:
                        self._find_anew()
                    return action(*args, **kwargs)
                except _PASSING as error:
                    if _remedy(error, _WRONG_SETTINGS) or time.monotonic() > end_s:
                        raise
                failed = True
                time.sleep(PAUSE_S)

    def close(self) -> None:
        """Close the connections; they are made again when used."""
        client, self._connected = self._connected, None
        if client is not None:
            client.close()

    @property
    def _client(self) -> Redis | RedisCluster:
        """Without a lock: behind it threads would wait for a silent server one after the other."""
        client = self._connected
        if client is None:
            client = self._connected = self._connect()
        return client

    def _connect(self) -> Redis | RedisCluster:
        address, settings = self.address, self._settings(ANSWER_S)
        if address.scheme.endswith("+sentinel"):
            asked = self._settings(ANSWER_S / len(address.hosts))
            del asked["username"]
            sentinel = Sentinel(address.hosts, sentinel_kwargs=asked, **settings)
            return sentinel.master_for(address.name)
        if address.scheme.endswith("+cluster"):
            seeds = self._asked(address.hosts)
            return RedisCluster(startup_nodes=seeds, require_full_coverage=False, **settings)
        ((host, port),) = address.hosts
        return Redis(host, port, **settings)

    def _find_anew(self) -> None:
        """Ask some nodes of a Cluster where the keys are now."""
        client = self._client
        if isinstance(client, RedisCluster):
            known = [(node.host, node.port) for node in client.get_nodes()]
            asked = self._asked(random.sample(known, min(ASKED, len(known))))
            client.nodes_manager.startup_nodes = {node.name: node for node in asked}
            client.nodes_manager.initialize()

    def _asked(self, hosts: Sequence[tuple[str, int]]) -> list[ClusterNode]:
        settings = self._settings(ANSWER_S / len(hosts))
        return [
            ClusterNode(host, port, redis_connection=Redis(host, port, **settings)) for host, port in hosts
        ]

    def _settings(self, answer_s: float) -> dict[str, Any]:
        address = self.address
        settings: dict[str, Any] = {
            "username": address.user or None,
            "password": address.password(),
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": answer_s,
            "retry": Retry(NoBackoff(), 0),  # `ask` does it, alike for all three
            "protocol": 2,
        }
        if address.scheme.startswith("rediss"):
            authority = address.options.get("ca")
            if authority and not Path(authority).is_file():
                raise InputError(f"URL {address.url}: ca names no file")
            settings |= {"ssl": True, "ssl_ca_certs": authority}
        return settings

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.RedisError, exceptions.RedisClusterException) as error:
            remedy = _remedy(error, _WRONG_SETTINGS + _OUTAGES) or "see the log of the server"
            said = str(error)
            if isinstance(error, MasterNotFoundError):  # behind it, all settings of every Sentinel
                said = said.partition(" : ")[0]
            raise BackendError(f"{self.url}: {said}; {remedy}") from error


def _remedy(error: BaseException, remedies: Sequence[tuple[str, str]]) -> str:
    behind: list[str] = []
    one: BaseException | None = error
    while one is not None:
        behind.append(f"{type(one).__name__}: {one}")
        one = one.__cause__ or one.__context__
    said = "\n".join(behind)
    return next((remedy for pattern, remedy in remedies if re.search(pattern, said, re.MULTILINE)), "")
