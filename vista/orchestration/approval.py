"""A person's word before a promotion, if the deployment wants one."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk.exceptions import AirflowFailException

from vista.orchestration.deployment import approval_is_on

if TYPE_CHECKING:
    from airflow.sdk import Context

RESPONSE = timedelta(hours=20)
"""After that it counts as rejected: the refresh of the next day waits for this one, and what was judged
against an old champion is not promoted by surprise."""
NOBODY = "nobody within 20 hours"


class PromotionApproval(ApprovalOperator):
    """Asks for approval of what the gate let pass; returns the options of `python -m vista promote`.

    A rejection does not skip the tasks behind it, as Airflow's own does: `promote` records who rejected, and
    `clean_up` comes after it as always.
    """

    def __init__(self, *, retrained: str, **arguments: Any) -> None:
        super().__init__(
            subject="Promote the models of {{ run_id }}?",
            body=f"The gate lets them pass:\n\n{{% for reason in ti.xcom_pull('{retrained}').gate.reasons %}}"
            "- {{ reason }}\n{% endfor %}",
            defaults=self.REJECT,
            response_timeout=RESPONSE,
            **arguments,
        )
        self.retrained = retrained

    def execute(self, context: "Context") -> dict[str, str]:
        try:
            wanted = approval_is_on()
        except ValueError as error:
            raise AirflowFailException(f"stage {self.task_id} failed: {error}") from error
        if not wanted:
            self.log.info("no approval is wanted: the Variable vista_approval is not true")
            return {}
        if not context["ti"].xcom_pull(task_ids=self.retrained)["gate"]["promote"]:
            self.log.info("nothing to approve: the gate refuses")
            return {}
        super().execute(context)
        raise AssertionError("Airflow's operator waits by raising")

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> dict[str, str]:
        """Called with the answer."""
        answer = HITLOperator.execute_complete(self, context, event)
        person = answer["responded_by_user"]
        name = (person.get("name") or person.get("id")) if person else NOBODY
        approved = answer["chosen_options"] == [self.APPROVE]
        self.log.info("%s by %s", "approved" if approved else "rejected", name)
        return {"approved_by" if approved else "rejected_by": str(name)}
