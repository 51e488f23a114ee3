"""The store of a region that a URL names."""

from vista.delivery.interfaces import Store
from vista.delivery.sqlite_store import SqliteStore
from vista.errors import InputError


def open_store(url: str, buckets: int | None = None) -> Store:
    """Open a region's store; `buckets` makes a new one, None opens one that exists.

    Raises `InputError` for an unknown scheme, `BackendError` if the store has another number of buckets.
    """
    if url.startswith("sqlite:"):
        return SqliteStore(url, buckets)
    raise InputError(f"store URL {url!r}: the scheme is unknown; use sqlite:///path")
