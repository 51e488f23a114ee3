"""The log that a URL names."""

from vista.delivery.address import shown
from vista.delivery.interfaces import Log
from vista.delivery.sqlite_log import SqliteLog
from vista.errors import InputError


def open_log(url: str, partitions: int | None = None) -> Log:
    """Open a log; `partitions` makes a new one, None opens one that exists.

    Raises `InputError` for an unknown scheme, `NoLogError` if there is none, `BackendError` if it has another
    number of partitions.
    """
    if url.startswith("sqlite:"):
        return SqliteLog(url, partitions)
    if url.startswith(("kafka:", "kafkas:")):
        from vista.delivery.kafka_log import KafkaLog  # the embedded log needs no client

        return KafkaLog(url, partitions)
    raise InputError(
        f"log URL {shown(url)!r}: the scheme is unknown; use sqlite:///path, kafka:// or kafkas://"
    )
