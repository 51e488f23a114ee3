"""Prometheus' own checks of the alerts: the rules, and what they do on made-up figures."""

from infra.prometheus import RULES
from infra.servers import call, program


def test_the_rules_are_valid() -> None:
    assert "SUCCESS" in call([program("promtool"), "check", "rules", str(RULES)], "promtool check rules")


def test_every_alert_fires_when_it_must_and_is_silent_when_it_must() -> None:
    made_up = RULES.with_name("alerts_test.yml")
    assert "SUCCESS" in call([program("promtool"), "test", "rules", str(made_up)], "promtool test rules")
