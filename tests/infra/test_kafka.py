"""Kafka: brokers that lose one of them, and come back."""

import socket
import threading
from pathlib import Path

from infra.kafka import metadata, running_kafka
from infra.processes import wait_until
from infra.servers import HOST

FAIL_OVER_S = 60.0  # 3 s on two idle cores


def test_two_of_three_brokers_go_on_and_take_the_third_back(place: Path) -> None:
    with running_kafka(place, 3) as kafka:
        first, second, third = kafka.brokers
        first.server.kill()
        assert metadata(first.port) is None
        for other in (second, third):
            assert wait_until(lambda port=other.port: _nodes(port) == {2, 3}, FAIL_OVER_S)
        first.server.start()
        first.server.wait()
        for broker in kafka.brokers:
            assert wait_until(lambda port=broker.port: _nodes(port) == {1, 2, 3}, FAIL_OVER_S)


def test_a_restart_has_the_old_address(place: Path) -> None:
    with running_kafka(place) as kafka:
        before = kafka.bootstrap
    with running_kafka(place) as kafka:
        assert kafka.bootstrap == before


def test_who_breaks_off_in_the_middle_of_an_answer_does_not_answer() -> None:
    def break_off(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"\0\0\1\0half")
        connection.close()

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=break_off, args=(listener,))
        thread.start()
        assert metadata(listener.getsockname()[1]) is None
        thread.join(10)


def _nodes(port: int) -> frozenset[int] | None:
    seen = metadata(port)
    return seen.nodes if seen else None
