"""A topic that was just made: brokers learn of it one after the other."""

import pytest

from vista.delivery import kafka_topic
from vista.delivery.kafka_topic import once_known


def test_the_broker_that_is_asked_next_may_not_know_it_yet() -> None:
    answers = iter([None, [], ["partition 0"], None])
    assert once_known(lambda: next(answers)) == ["partition 0"]
    assert next(answers) is None, "it is asked no more"


def test_what_no_broker_knows_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topic, "KNOWN_S", 0.2)
    assert once_known(lambda: None) is None
