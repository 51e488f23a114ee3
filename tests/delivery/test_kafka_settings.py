"""The log on Kafka: every wrong setting is a typed error that names it, soon; every right one works."""

import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from kafka_topics import addresses, alter, new_topic, plain_url, secret_url
from refusals import refused

from infra.kafka import Kafka, running_kafka
from infra.ports import free_block
from infra.tls import make_certificates
from vista.delivery.log import open_log
from vista.errors import BackendError, InputError


def test_tls_and_a_password(kafka: Kafka, servers_place: Path) -> None:
    url = secret_url(kafka, servers_place / "tls" / "authority.pem", new_topic())
    with closing(open_log(url, 2)) as log:
        assert log.append(1, [b"a", b"b"]) == 2
        assert log.read(1, 0, 10) == [(0, b"a"), (1, b"b")]
    with closing(open_log(url)) as log:
        assert (log.partitions, log.bounds(1)) == (2, (0, 2))


def test_scram_where_the_broker_has_it(servers_place: Path) -> None:
    certificates = make_certificates(servers_place / "tls")
    with running_kafka(servers_place / "scram", 1, certificates, "PLAIN,SCRAM-SHA-256") as kafka:
        url = secret_url(kafka, certificates.authority, new_topic())
        with refused("password_file"):  # SCRAM is taken, and does not know the user yet
            open_log(url, 2)
        assert kafka.vista_password is not None
        user = UserScramCredentialUpsertion(
            "vista", ScramMechanism.SCRAM_SHA_256, kafka.vista_password.read_text(), iterations=4_096
        )
        with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
            admin.alter_user_scram_credentials([user])
        with closing(open_log(url, 2)) as log:
            assert log.append(0, [b"a"]) == 1


def test_a_host_or_port_where_no_broker_is() -> None:
    nobody = f"127.0.0.1:{free_block(1)}"
    for place in (nobody, "nowhere.invalid:9092"):
        with refused(rf"kafka://{place}/log: no broker can be used .*check host and port"):
            open_log(f"kafka://{place}/log", 4)


def test_a_listener_that_takes_everything_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with refused("no broker can be used .*check host and port"):
            open_log(f"kafka://{place}/log", 4)
        with refused("cannot be used .*check host and port"):
            open_log(f"kafkas://vista@{place}/log?password_file={tmp_path}/password", 4)


def test_hosts_that_are_dead_or_silent_do_no_harm_beside_one_that_answers(
    kafka: Kafka, servers_place: Path
) -> None:
    authority = servers_place / "tls" / "authority.pem"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        others = f"127.0.0.1:{free_block(1)},127.0.0.1:{listener.getsockname()[1]}"
        for url in (plain_url(kafka, new_topic()), secret_url(kafka, authority, new_topic())):
            with closing(open_log(url.replace("127.0.0.1", f"{others},127.0.0.1", 1), 1)) as log:
                assert log.append(0, [b"a"]) == 1
                assert log.read(0, 0, 1) == [(0, b"a")]


def test_the_wrong_kind_of_listener(kafka: Kafka, servers_place: Path) -> None:
    with refused("the scheme fits the listener"):
        open_log(f"kafka://{kafka.bootstrap[0]}/{new_topic()}", 4)
    plain = replace(kafka, bootstrap=addresses(kafka))
    with refused("the scheme fits the listener"):
        open_log(secret_url(plain, servers_place / "tls" / "authority.pem", new_topic()), 4)


def test_a_wrong_password_user_or_authority(kafka: Kafka, servers_place: Path, tmp_path: Path) -> None:
    authority = servers_place / "tls" / "authority.pem"
    (tmp_path / "password").write_text("guessed")
    guessed = replace(kafka, vista_password=tmp_path / "password")
    with refused("the user or what password_file holds is wrong"):
        open_log(secret_url(guessed, authority, new_topic()), 4)
    with refused("the user or what password_file holds is wrong"):
        open_log(secret_url(kafka, authority, new_topic(), user="nobody"), 4)
    strange = make_certificates(tmp_path / "strange").authority
    with refused("cannot be trusted .*ca must name the authority"):
        open_log(secret_url(kafka, strange, new_topic()), 4)
    with refused("ca cannot be read", InputError):
        open_log(secret_url(kafka, tmp_path / "missing.pem", new_topic()), 4)
    with refused("password_file cannot be read", InputError):
        open_log(secret_url(replace(kafka, vista_password=tmp_path / "missing"), authority, new_topic()), 4)


def test_urls_that_say_too_little_or_too_much() -> None:
    wrong = {
        "kafka://localhost:9092": "name a topic",
        "kafka://localhost:9092/a%20log": "name a topic",
        "kafka://localhost/log": "is no host:port",
        "kafka://vista@localhost:9092/log": "kafkas:// takes a user",
        "kafka://localhost:9092/log?ca=x.pem": "option 'ca' is unknown",
        "kafkas://localhost:9092/log?password_file=x": "kafkas:// takes a user",
        "kafkas://vista@localhost:9092/log": r"\?password_file=PATH",
    }
    for url, says in wrong.items():
        with refused(says, InputError):
            open_log(url, 4)


def test_a_topic_that_is_not_there(kafka: Kafka) -> None:
    topic = new_topic()
    with refused(f"there is no topic {topic}; deliver an epoch first"):
        open_log(plain_url(kafka, topic))


def test_two_deployments_on_one_topic(kafka: Kafka) -> None:
    url = plain_url(kafka, new_topic())
    open_log(url, 4).close()
    with refused("has 4 buckets, this run has 8: .*use another topic"):
        open_log(url, 8)


def test_a_topic_with_other_settings(kafka: Kafka) -> None:
    unfit: list[tuple[dict[str, str], str]] = [
        ({"cleanup_policy": "delete"}, "has cleanup.policy delete, wanted is compact,delete"),
        ({"retention_ms": "3600000"}, "has retention.ms 3600000, wanted is 604800000"),
        ({"retention_bytes": "1000000"}, "has retention.bytes 1000000, wanted is -1"),
        ({"max_compaction_lag_ms": "86400001"}, "has max.compaction.lag.ms 86400001, wanted is 86400000"),
        ({"max_message_bytes": "1000000"}, "has max.message.bytes 1000000, wanted is 8388608"),
        (
            {"unclean_leader_election_enable": "true"},
            "has unclean.leader.election.enable true, wanted is false",
        ),
        (
            {"message_timestamp_type": "CreateTime"},
            "has message.timestamp.type CreateTime, wanted is LogAppendTime",
        ),
    ]
    for settings, says in unfit:
        topic = new_topic()
        open_log(plain_url(kafka, topic), 2).close()
        alter(kafka, topic, **settings)
        with refused(f"topic {topic} {says}: change the topic"):
            open_log(plain_url(kafka, topic), 2)
        open_log(plain_url(kafka, topic)).close()  # who only reads takes it as it is
    roomier = new_topic()
    open_log(plain_url(kafka, roomier), 2).close()
    alter(kafka, roomier, retention_ms="-1", cleanup_policy="delete,compact", max_message_bytes="16777216")
    open_log(plain_url(kafka, roomier), 2).close()


def test_a_topic_that_was_deleted_meanwhile(kafka: Kafka) -> None:
    topic = new_topic()
    with closing(open_log(plain_url(kafka, topic), 1)) as log:
        assert log.append(0, [b"a"]) == 1
        with closing(KafkaAdminClient(bootstrap_servers=addresses(kafka))) as admin:
            admin.delete_topics([topic])
        with pytest.raises(BackendError, match=topic):
            log.bounds(0)


def test_a_record_that_is_too_long_is_the_callers_error(kafka: Kafka) -> None:
    with closing(open_log(plain_url(kafka, new_topic()), 1)) as log:
        calls: list[Callable[[], int]] = [
            lambda: log.append(0, [b"x" * 2**23]),
            lambda: log.append(0, [b"y"]),
        ]
        with pytest.raises(InputError, match="8388608 bytes, the log takes 8387584"):
            calls[0]()
        longest = b"x" * 8_387_584
        assert (calls[1](), log.append(0, [longest])) == (1, 2)
        assert log.read(0, 1, 1) == [(1, longest)]
