"""What a deployment configures in Airflow: values that nobody is there to type, who approves, who is told."""

import json
import logging
from typing import Any

import httpx
from airflow.sdk import BaseHook, Variable
from airflow.sdk.exceptions import AirflowNotFoundException

from vista.config import CheckConfig, GridConfig, RefreshConfig

log = logging.getLogger(__name__)

VALUES = "vista"
"""Variable: a JSON object of the forms' fields."""
APPROVAL = "vista_approval"
"""Variable: `true` if a person has to approve each promotion."""
ALERTS = "vista_alerts"
"""Connection: whom to tell of failures; host: a URL that takes a POST of JSON, password: a bearer token."""

NAMES = frozenset({"run_id", "grid"})
"""Fields that are the run's own name if they are empty."""
OF_A_RUN = NAMES | {"until"}
"""Fields that no deployment can set: a day would be read until another one, or be an earlier run."""
FIELDS = (
    frozenset({*RefreshConfig.model_fields, *CheckConfig.model_fields, *GridConfig.model_fields}) - OF_A_RUN
)

SEND_S = 10.0


def values() -> dict[str, Any]:
    """Fields of the forms that the deployment sets. Raises `ValueError` for anything else."""
    found = _variable(VALUES, {}, "write a JSON object of a form's fields")
    if not isinstance(found, dict):
        raise ValueError(f"the Variable {VALUES!r} is {found!r}: write a JSON object of a form's fields")
    if unknown := sorted(found.keys() - FIELDS):
        raise ValueError(f"the Variable {VALUES!r} has {unknown[0]!r}: it takes {', '.join(sorted(FIELDS))}")
    return found


def approval_is_on() -> bool:
    """Whether a person has to approve promotions. Raises `ValueError` for what says neither."""
    found = _variable(APPROVAL, False, "write true or false")
    if not isinstance(found, bool):
        raise ValueError(f"the Variable {APPROVAL!r} is {found!r}: write true or false")
    return found


def _variable(name: str, default: Any, remedy: str) -> Any:
    text = Variable.get(name, default=None)
    try:
        return default if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"the Variable {name!r} is no JSON ({error}): {remedy}") from error


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
        why = _without_url(error)
        log.error("the alert about %s could not be sent by connection %s: %s", ti.task_id, ALERTS, why)
    else:
        log.info("sent an alert about %s by connection %s", ti.task_id, ALERTS)


def _without_url(error: Exception) -> str:
    """Of httpx's errors only this: a hook's URL is often itself the secret."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered {error.response.status_code}"
    return type(error).__name__
