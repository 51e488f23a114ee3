"""Kafka as its clients see it: TLS and a password at the door, nothing lost when a leader is killed."""

from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaTimeoutError

from infra.kafka import Kafka, running_kafka
from infra.tls import Certificates, make_certificates

PARTITION = TopicPartition("summaries", 0)
ANSWER_S = 120.0
RECORDS = 2_000


def access(kafka: Kafka, certificates: Certificates) -> dict[str, Any]:
    assert kafka.vista_password is not None
    return {
        "bootstrap_servers": list(kafka.bootstrap),
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(certificates.authority),
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "vista",
        "sasl_plain_password": kafka.vista_password.read_text(),
    }


def test_acknowledged_records_outlive_their_leader(place: Path) -> None:
    certificates = make_certificates(place / "tls")
    with running_kafka(place / "kafka", 3, certificates) as kafka:
        settings = access(kafka, certificates)
        admin = KafkaAdminClient(**settings)
        admin.create_topics([NewTopic(PARTITION.topic, 1, 3)], wait_for_metadata=True)
        (described,) = admin.describe_topics([PARTITION.topic])
        leader = described["partitions"][0]["leader_id"]
        producer = KafkaProducer(**settings, acks="all", delivery_timeout_ms=300_000)
        sent = []
        for number in range(RECORDS):
            sent.append(producer.send(PARTITION.topic, b"%d" % number, partition=PARTITION.partition))
            if number == RECORDS // 2:
                sent[-1].get(ANSWER_S)
                kafka.brokers[leader - 1].server.kill()
        offsets = [future.get(ANSWER_S).offset for future in sent]
        producer.close()
        assert offsets == list(range(RECORDS))
        consumer = KafkaConsumer(**settings, auto_offset_reset="earliest", consumer_timeout_ms=10_000)
        consumer.assign([PARTITION])
        read = [next(consumer).value for _ in range(RECORDS)]
        consumer.close()
        admin.close()
    assert read == [b"%d" % number for number in range(RECORDS)]


def test_a_wrong_password_or_authority_is_refused(place: Path) -> None:
    certificates = make_certificates(place / "tls")
    with running_kafka(place / "kafka", 1, certificates) as kafka:
        settings = access(kafka, certificates)
        KafkaAdminClient(**settings).close()
        strange = make_certificates(place / "strange")
        for wrong in ({"sasl_plain_password": "wrong"}, {"ssl_cafile": str(strange.authority)}):
            with pytest.raises(KafkaTimeoutError, match="Unable to bootstrap"):
                KafkaAdminClient(**{**settings, **wrong}, bootstrap_timeout_ms=4_000)
