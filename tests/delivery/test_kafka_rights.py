"""A user of Kafka without a right: a typed error in time that says which rights are needed."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka_topics import addresses, new_topic, plain_url, read_all, secret_url
from refusals import LIMIT_S, refused

from infra.kafka import Kafka
from infra.processes import wait_until
from vista.delivery.log import open_log
from vista.errors import BackendError

RIGHTS = "the user needs Describe, DescribeConfigs, Read and Write on the topic"
TOPIC, GROUP, CLUSTER = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.CLUSTER


@contextmanager
def only(kafka: Kafka, kind: ResourceType, name: str, *operations: ACLOperation) -> Iterator[None]:
    """`vista` may do only this with a resource; somebody else may do all."""
    pattern = ResourcePattern(kind, name)
    allow = ACLPermissionType.ALLOW
    acls = [ACL("User:vista", "*", operation, allow, pattern) for operation in operations]
    acls.append(ACL("User:other", "*", ACLOperation.ALL, allow, pattern))
    with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
        assert not admin.create_acls(acls)["failed"]
        try:
            yield
        finally:
            admin.delete_acls(acls)


def reads(kafka: Kafka, url: str) -> bool:
    try:
        with closing(open_log(url)) as log:
            return read_all(log, 0) == [(0, b"a")]
    except BackendError:
        return False


def test_rights_of_a_topic(kafka: Kafka, servers_place: Path) -> None:
    topic = new_topic()
    url = secret_url(kafka, servers_place / "tls" / "authority.pem", topic)
    with closing(open_log(plain_url(kafka, topic), 2)) as log:
        log.append(0, [b"a"])
    assert reads(kafka, url)
    with only(kafka, TOPIC, topic):
        assert wait_until(lambda: not reads(kafka, url), LIMIT_S)
        with refused(RIGHTS):
            open_log(url)
        with refused(RIGHTS):
            open_log(url, 2)
    with only(kafka, TOPIC, topic, ACLOperation.DESCRIBE, ACLOperation.WRITE):
        assert wait_until(lambda: open_log(url).partitions == 2, LIMIT_S)
        with closing(open_log(url)) as log:
            assert log.append(1, [b"b"]) == 1
            with refused(RIGHTS):
                log.read(0, 0, 10)
        with refused(RIGHTS):  # the topic's settings cannot be checked
            open_log(url, 2)
    with only(kafka, TOPIC, topic, ACLOperation.DESCRIBE, ACLOperation.READ):
        assert wait_until(lambda: reads(kafka, url), LIMIT_S)
        with closing(open_log(url)) as log:
            with refused(RIGHTS):
                log.append(1, [b"c"])
            with refused(RIGHTS):
                log.broadcast([0, 1], b"c")
            assert log.read(1, 0, 10) == [(0, b"b")], "nothing is lost, and nothing was added"
    with closing(open_log(url, 2)) as log:
        assert log.append(1, [b"c"]) == 2


def test_rights_to_make_a_topic(kafka: Kafka, servers_place: Path) -> None:
    topic = new_topic()
    url = secret_url(kafka, servers_place / "tls" / "authority.pem", topic)
    with (
        only(kafka, TOPIC, topic, ACLOperation.DESCRIBE),
        only(kafka, CLUSTER, "kafka-cluster", ACLOperation.DESCRIBE),
        refused(RIGHTS),
    ):
        open_log(url, 2)
    open_log(url, 2).close()


def test_rights_of_a_regions_group(kafka: Kafka, servers_place: Path) -> None:
    topic = new_topic()
    url = secret_url(kafka, servers_place / "tls" / "authority.pem", topic)
    assigned: list[int] = []
    with closing(open_log(url, 2)) as log:
        with only(kafka, GROUP, f"{topic}.east"):
            subscription = log.subscribe("east", assigned.extend, lambda gone: None)
            with refused(RIGHTS):
                while True:
                    subscription.poll()
                    time.sleep(0.1)  # as a worker polls, between its rounds
            assert not assigned
        assert wait_until(lambda: _polled(subscription) and sorted(assigned) == [0, 1], 60.0)
        subscription.close()


def _polled(subscription: object) -> bool:
    try:
        subscription.poll()  # type: ignore[attr-defined]
    except BackendError:
        return False
    return True
