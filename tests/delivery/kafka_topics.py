"""Topics of the tests: their URLs, what they hold, how an operator changes them."""

import uuid
from contextlib import closing
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource

from infra.kafka import Kafka
from vista.delivery.interfaces import Log


def new_topic() -> str:
    return f"log-{uuid.uuid4().hex}"


def plain_url(kafka: Kafka, topic: str) -> str:
    """By way of the brokers' own listeners."""
    return f"kafka://{','.join(addresses(kafka))}/{topic}"


def secret_url(kafka: Kafka, authority: Path, topic: str, user: str = "vista") -> str:
    return f"kafkas://{user}@{','.join(kafka.bootstrap)}/{topic}?password_file={kafka.vista_password}&ca={authority}"


def addresses(kafka: Kafka) -> list[str]:
    return [f"127.0.0.1:{broker.port}" for broker in kafka.brokers]


def alter(kafka: Kafka, topic: str, **settings: str) -> None:
    """Change settings of a topic; `_` stands for `.`."""
    changed = {name.replace("_", "."): value for name, value in settings.items()}
    with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
        admin.alter_configs([ConfigResource("TOPIC", topic, changed)])


def leader(kafka: Kafka, topic: str, partition: int) -> int:
    """The node that leads a partition."""
    with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
        (described,) = admin.describe_topics([topic])
    found: int = next(
        one["leader_id"] for one in described["partitions"] if one["partition_index"] == partition
    )
    return found


def read_all(log: Log, partition: int) -> list[tuple[int, bytes]]:
    """A partition from its first record to its end of now."""
    offset, end = log.bounds(partition)
    found: list[tuple[int, bytes]] = []
    while offset < end:
        some = log.read(partition, offset, 2**22)
        found += some
        offset = some[-1][0] + 1 if some else end
    return found
