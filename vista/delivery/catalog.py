"""The catalog that a URL names."""

from vista.delivery.address import shown
from vista.delivery.interfaces import Catalog
from vista.delivery.sqlite_catalog import SqliteCatalog
from vista.errors import InputError


def open_catalog(url: str) -> Catalog:
    """Open a catalog. Raises `InputError` for an unknown scheme."""
    if url.startswith("sqlite:"):
        return SqliteCatalog(url)
    if url.startswith("hive:"):
        from vista.delivery.hive_catalog import HiveCatalog  # two seconds of generated thrift

        return HiveCatalog(url)
    raise InputError(
        f"catalog URL {shown(url)!r}: the scheme is unknown; use sqlite:///path or hive://host:port/database"
    )
