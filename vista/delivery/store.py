"""The store of a region that a URL names."""

from vista.delivery.address import shown
from vista.delivery.interfaces import Store
from vista.delivery.sqlite_store import SqliteStore
from vista.errors import InputError


def open_store(url: str, buckets: int) -> Store:
    """A region's store; it is made when first used, so that one broken region does not stop the others.

    Raises `InputError` for an unknown scheme; using it, `BackendError` if it has another number of buckets.
    """
    if url.startswith("sqlite:"):
        return SqliteStore(url, buckets)
    if url.startswith("redis"):
        from vista.delivery.redis_store import RedisStore  # the embedded path needs no client

        return RedisStore(url, buckets)
    raise InputError(
        f"store URL {shown(url)!r}: the scheme is unknown; use sqlite:///path or redis[s][+sentinel|+cluster]://host:port"
    )
