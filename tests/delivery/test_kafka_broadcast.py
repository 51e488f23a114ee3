"""Control records of many partitions are on their way together."""

import time
from contextlib import closing

from delivery_samples import SPACES
from kafka_topics import new_topic, plain_url

from infra.kafka import Kafka
from vista.delivery.control import retirement
from vista.delivery.log import open_log

PARTITIONS = 200


def test_a_broadcast_waits_once_not_for_every_partition(kafka: Kafka) -> None:
    control = retirement(SPACES[0], 1)
    with closing(open_log(plain_url(kafka, new_topic()), PARTITIONS)) as log:
        log.broadcast(range(PARTITIONS), control)  # the producer has found its leaders
        started_s = time.monotonic()
        for partition in range(PARTITIONS):
            log.append(partition, [control])
        one_by_one_s = time.monotonic() - started_s
        started_s = time.monotonic()
        log.broadcast(range(PARTITIONS), control)
        together_s = time.monotonic() - started_s
        assert together_s < one_by_one_s / 3, (together_s, one_by_one_s)
        assert all(log.bounds(partition) == (0, 3) for partition in range(PARTITIONS))
