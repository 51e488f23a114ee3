"""The topic of a log: made as the delivery needs it, or found to be so."""

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.errors import (
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from vista.delivery.address import Address
from vista.delivery.kafka_clients import connect, mapped
from vista.errors import BackendError, NoLogError

COPIES = 3
RETENTION_S = 7 * 86_400
"""More than an epoch's cadence, the longest backfill and the longest outage of a region together."""
COMPACTION_LAG_S = 86_400
"""What is erased is gone from the log after this time."""
MAX_MESSAGE_BYTES = 8 * 2**20
REQUEST_S = 8.0
KNOWN_S = 5.0
"""After a topic is made each broker learns of it in its own time."""

IDENTITY_S = 1.0
"""The answer names every partition: it is not asked for before each batch."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Setting:
    wanted: str
    fits: Callable[[str], bool]


def open_topic(address: Address, access: dict[str, Any], partitions: int | None) -> int:
    """The number of partitions; a topic that is not there is made with `partitions`.

    Raises `NoLogError` if neither is, `BackendError` for a topic with another number or, if `partitions` is
    given, unfit settings.
    """
    request_ms = int(REQUEST_S * 1_000)
    admin = connect(KafkaAdminClient, address, request_timeout_ms=request_ms, **access)
    with closing(admin), mapped(address.url):
        found = _described(admin, address.name)
        new = found is None
        if found is None and partitions is None:
            raise NoLogError(
                f"{address.url} is empty: there is no topic {address.name}; deliver an epoch first, or "
                "correct the URL; a log that was lost is made anew by `python -m vista repair --reason ...`"
            )
        if found is None:
            _make(admin, address.name, partitions)
            found = once_known(lambda: _described(admin, address.name)) or []
        if partitions not in (None, len(found)):
            raise BackendError(
                f"{address.url} has {len(found)} buckets, this run has {partitions}: the count is fixed per "
                "deployment; use another topic, or the same count"
            )
        if partitions is not None:
            _check(admin, address, min(len(partition["replica_nodes"]) for partition in found), new=new)
        return len(found)


class TopicId:
    """The id that the brokers gave a topic when it was made, for one process; threads take turns."""

    def __init__(self, address: Address, access: dict[str, Any]) -> None:
        self._address, self._access = address, access
        self._lock = threading.Lock()
        self._admin: KafkaAdminClient | None = None
        self._asked_s, self._found = 0.0, ""

    def ask(self) -> str:
        """As of `IDENTITY_S` ago at most. Raises Kafka's errors."""
        with self._lock:
            now_s = time.monotonic()
            if self._found and now_s < self._asked_s + IDENTITY_S:
                return self._found
            if self._admin is None:
                request_ms = int(REQUEST_S * 1_000)
                self._admin = connect(
                    KafkaAdminClient, self._address, request_timeout_ms=request_ms, **self._access
                )
            (described,) = self._admin.describe_topics([self._address.name])
            if (error := for_code(described["error_code"])) is not NoError:
                raise error(self._address.name)
            self._asked_s, self._found = now_s, str(described["topic_id"])
            return self._found

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()


def once_known(ask: Callable[[], Answer]) -> Answer:
    """What a broker says of a topic that was just made, as soon as it says anything: another one than
    answered before may not know the topic yet. After `KNOWN_S`: nothing."""
    end_s = time.monotonic() + KNOWN_S
    while not (answer := ask()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return answer


def _described(admin: KafkaAdminClient, topic: str) -> list[dict[str, Any]] | None:
    (described,) = admin.describe_topics([topic])
    error = for_code(described["error_code"])
    if error is UnknownTopicOrPartitionError:
        return None
    if error is not NoError:
        raise error(topic)
    partitions: list[dict[str, Any]] = described["partitions"]
    return partitions


def _make(admin: KafkaAdminClient, topic: str, partitions: int | None) -> None:
    copies = _copies(admin)
    configs = {name: setting.wanted for name, setting in _settings(copies).items()}
    made = {"num_partitions": partitions, "replication_factor": copies, "configs": configs}
    with suppress(TopicAlreadyExistsError):  # another process was faster; it is checked like any other
        admin.create_topics({topic: made})
    admin.wait_for_topics([topic], timeout_ms=int(REQUEST_S * 1_000))


def _check(admin: KafkaAdminClient, address: Address, copies: int, *, new: bool) -> None:
    wanted = {"replication factor": _at_least(_copies(admin)), **_settings(copies)}
    asked = ConfigResource("TOPIC", address.name, [name for name in wanted if "." in name])

    def ask() -> dict[str, dict[str, Any]]:
        described: dict[str, dict[str, Any]] = admin.describe_configs([asked], config_filter="all")["topic"]
        return described[address.name]

    described = once_known(ask) if new else ask()
    if not described:  # the client drops the error
        raise TopicAuthorizationFailedError(f"the settings of {address.name} cannot be read")
    found = {name: str(entry["value"]) for name, entry in described.items()}
    found["replication factor"] = str(copies)
    for name, setting in wanted.items():
        if not setting.fits(found[name]):
            raise BackendError(
                f"{address.url}: topic {address.name} has {name} {found[name]}, wanted is {setting.wanted}: "
                "change the topic, or use another one"
            )


def _copies(admin: KafkaAdminClient) -> int:
    """Of three brokers one may fail; a single one is for a laptop."""
    return min(COPIES, len(admin.describe_cluster()["brokers"]))


def _settings(copies: int) -> dict[str, _Setting]:
    both = "compact,delete"
    return {
        "cleanup.policy": _Setting(both, lambda found: set(found.split(",")) == set(both.split(","))),
        "retention.ms": _at_least(RETENTION_S * 1_000),
        "retention.bytes": _equal("-1"),
        "max.compaction.lag.ms": _at_most(COMPACTION_LAG_S * 1_000),
        "max.message.bytes": _at_least(MAX_MESSAGE_BYTES),
        "min.insync.replicas": _at_least(max(1, copies - 1)),
        "unclean.leader.election.enable": _equal("false"),
        # a producer whose clock is wrong must not let its records be deleted at once
        "message.timestamp.type": _equal("LogAppendTime"),
    }


def _equal(wanted: str) -> _Setting:
    return _Setting(wanted, lambda found: found == wanted)


def _at_least(wanted: int) -> _Setting:
    return _Setting(str(wanted), lambda found: int(found) >= wanted or int(found) == -1)  # -1: no limit


def _at_most(wanted: int) -> _Setting:
    return _Setting(str(wanted), lambda found: int(found) <= wanted)
