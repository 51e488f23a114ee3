"""The nodes of a region's Redis: one server, a primary below Sentinels, or a Cluster, chosen by the URL.

redis://USER@HOST:PORT, redis+sentinel://USER@HOST:PORT,HOST:PORT/PRIMARY, redis+cluster://USER@HOST:PORT,...;
rediss instead of redis for TLS. The Sentinels take the same password, without a user. What a node says is
mapped to `BackendError` here.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from redis import Redis, RedisCluster, exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from vista.delivery.address import Address, shown
from vista.errors import BackendError, InputError

SCHEMES = tuple(f"{base}{kind}" for base in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster"))
CONNECT_S, ANSWER_S = 1.0, 3.0
"""With a patience of 5 s at most 9 s pass until a wrong setting is an error."""
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
                    if failed and isinstance(self._client, RedisCluster):
                        self._client.nodes_manager.initialize()
                    return action(*args, **kwargs)
                except _PASSING as error:
                    if _remedy(error, _WRONG_SETTINGS) or time.monotonic() > end_s:
                        raise
                failed = True
                time.sleep(PAUSE_S)

    def close(self) -> None:
        """Close the connections; they are made again when used."""
        if client := self.__dict__.pop("_client", None):
            client.close()

    @cached_property
    def _client(self) -> Redis | RedisCluster:
        address, settings = self.address, self._settings()
        if address.scheme.endswith("+sentinel"):
            alike = {name: value for name, value in settings.items() if name != "username"}
            sentinel = Sentinel(address.hosts, sentinel_kwargs=alike, **settings)
            return sentinel.master_for(address.name)
        if address.scheme.endswith("+cluster"):
            del settings["retry"]
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            never = Retry(NoBackoff(), 0)
            return RedisCluster(startup_nodes=nodes, require_full_coverage=False, retry=never, **settings)
        ((host, port),) = address.hosts
        return Redis(host, port, **settings)

    def _settings(self) -> dict[str, Any]:
        address = self.address
        settings: dict[str, Any] = {
            "username": address.user or None,
            "password": address.password(),
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": ANSWER_S,
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
            raise BackendError(f"{self.url}: {error}; {remedy}") from error


def _remedy(error: BaseException, remedies: Sequence[tuple[str, str]]) -> str:
    behind: list[str] = []
    one: BaseException | None = error
    while one is not None:
        behind.append(f"{type(one).__name__}: {one}")
        one = one.__cause__ or one.__context__
    said = "\n".join(behind)
    return next((remedy for pattern, remedy in remedies if re.search(pattern, said, re.MULTILINE)), "")
