"""What a deployment configures in Airflow: values that nobody is there to type, who approves, who is told."""

import logging
from typing import Any

import httpx
from airflow.sdk import BaseHook, Variable
from airflow.sdk.exceptions import AirflowNotFoundException

log = logging.getLogger(__name__)

VALUES = "vista"
"""Variable: a JSON object of the forms' fields."""
APPROVAL = "vista_approval"
"""Variable: `true` if a person has to approve each promotion."""
ALERTS = "vista_alerts"
"""Connection: whom to tell of failures; host: a URL that takes a POST of JSON, password: a bearer token."""

SEND_S = 10.0


def values() -> dict[str, Any]:
    """Fields of the forms that the deployment sets. Raises `ValueError` if they are no JSON object."""
    found = Variable.get(VALUES, default={}, deserialize_json=True)
    if not isinstance(found, dict):
        raise ValueError(f"the Variable {VALUES!r} is {found!r}: write a JSON object of a form's fields")
    return found


def approval_is_on() -> bool:
    """Whether a person has to approve promotions."""
    return bool(Variable.get(APPROVAL, default=False, deserialize_json=True))


def alert(context: Any) -> None:
    """Tell of a task that failed for good. Airflow calls it: what it raised would hide the failure itself."""
    ti, exception = context["ti"], context.get("exception")
    try:
        connection = BaseHook.get_connection(ALERTS)
    except AirflowNotFoundException:
        log.warning("nobody is told of this failure: there is no connection %s", ALERTS)
        return
    message = {
        "dag": ti.dag_id,
        "run": ti.run_id,
        "task": ti.task_id,
        "attempt": ti.try_number,
        "reason": str(exception or "it was ended from outside"),
        "log": getattr(ti, "log_url", ""),
    }
    headers = {"Authorization": f"Bearer {connection.password}"} if connection.password else {}
    try:
        httpx.post(connection.host or "", json=message, headers=headers, timeout=SEND_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.error("the alert about %s could not be sent by connection %s: %s", ti.task_id, ALERTS, error)
    else:
        log.info("sent an alert about %s by connection %s", ti.task_id, ALERTS)
