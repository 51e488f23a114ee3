"""What a deployment configures: values of runs that nobody fills a form for, and who is told of failures."""

import json
import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from vista.config import GridCell, GridConfig, RefreshConfig
from vista.orchestration.approval import NOBODY, RESPONSE, PromotionApproval
from vista.orchestration.conf import config_of
from vista.orchestration.deployment import alert, approval_is_on
from vista.orchestration.stages import form
from vista.orchestration.triage import APPROVAL_TRIAGE

pytestmark = pytest.mark.usefixtures("metadata_database")


def context_of(
    conf: dict[str, Any], partition: str | None = None, run: str = "manual__1", **form_of: object
) -> Any:
    """What Airflow gives a task, as far as its configuration goes."""
    run_of = SimpleNamespace(
        dag_id="some_dag", run_id=run, conf=conf, partition_key=partition, run_type=run.partition("__")[0]
    )
    fields = form(RefreshConfig, **form_of)
    params = {name: param.value for name, param in fields.items()}
    return {
        "dag": SimpleNamespace(params=fields), "dag_run": run_of, "params": params | conf,
        "ti": SimpleNamespace(task_id="prepare"),
    }  # fmt: skip


def test_a_run_s_conf_comes_before_the_deployment_s_and_that_before_the_form_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_VISTA", json.dumps({"recipe": "smoke", "width": 16, "max_age_s": 5}))
    config = config_of(RefreshConfig, context_of({"width": 8}, warm_start=True))
    assert config == RefreshConfig(recipe="smoke", width=8, warm_start=True, run_id="manual__1")


def test_a_day_is_one_run_whoever_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_VISTA", json.dumps({"warm_start": True}))
    scheduled = config_of(RefreshConfig, context_of({}, "2026-01-05", "scheduled__2026-01-06__x"))
    backfilled = config_of(RefreshConfig, context_of({}, "2026-01-05", "backfill__2026-01-06__y"))
    assert (
        scheduled
        == backfilled
        == RefreshConfig(until="2026-01-05", run_id="some_dag-2026-01-05", warm_start=True)
    )


def test_a_run_named_as_airflow_names_it_is_told_its_folder() -> None:
    airflows = "manual__2026-01-02T03:04:05+00:00__xnJ9"
    with pytest.raises(
        AirflowFailException, match=r"write 'manual__2026-01-02T03-04-05-00-00__xnJ9', the name"
    ):
        config_of(RefreshConfig, context_of({"run_id": airflows}))


def test_the_schedule_makes_no_day_of_a_deployment_that_has_not_said_of_what() -> None:
    """Whoever unpauses the DAG to try it out gets no run of the sample data every day."""
    with pytest.raises(AirflowSkipException, match="set the Variable 'vista'"):
        config_of(RefreshConfig, context_of({}, "2026-01-05", "scheduled__2026-01-06__x"))
    by_hand = config_of(RefreshConfig, context_of({}, "2026-01-05", "backfill__2026-01-06__y"))
    assert by_hand.until == "2026-01-05"


def test_what_an_earlier_task_found_out_comes_before_all() -> None:
    earlier = RefreshConfig(recipe="smoke", run_id="theirs", until="2026-01-01")
    config = config_of(RefreshConfig, context_of({"recipe": "events"}), earlier.model_dump(mode="json"))
    assert config == earlier


def test_a_grid_is_named_after_its_run_and_its_cells_after_it() -> None:
    grid = config_of(
        GridConfig, context_of({"seeds": "4,8"}) | {"params": GridConfig(seeds="4,8").model_dump()}
    )
    assert (grid.grid, [cell.seeds for cell in grid.cells()]) == ("manual__1", [4, 4, 4, 4, 8, 8, 8, 8])
    cell = config_of(GridCell, context_of({}), grid.cells()[0].model_dump())
    assert cell == grid.cells()[0]


@pytest.mark.parametrize(
    ("variable", "conf", "message"),
    [
        ('["smoke"]', {}, "write a JSON object of a form's fields"),
        ("{'recipe': 'smoke'}", {}, "the Variable 'vista' is no JSON .*write a JSON object"),
        ('{"warmstart": true}', {}, "the Variable 'vista' has 'warmstart': it takes codec, .*warm_start"),
        ('{"until": "2026-01-01"}', {}, "the Variable 'vista' has 'until'"),
        ("{}", {"width": 0}, "width"),
        ("{}", {"widht": 8}, "'widht' is unknown: some_dag takes recipe, .*width"),
    ],
)
def test_values_that_no_run_can_have(
    monkeypatch: pytest.MonkeyPatch, variable: str, conf: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_VISTA", variable)
    with pytest.raises(AirflowFailException, match=message):
        config_of(RefreshConfig, context_of(conf))


@pytest.mark.parametrize(("variable", "on"), [(None, False), ("true", True), ("false", False)])
def test_approval_is_what_the_variable_says(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, on: bool
) -> None:
    if variable is not None:
        monkeypatch.setenv("AIRFLOW_VAR_VISTA_APPROVAL", variable)
    assert approval_is_on() is on


@pytest.mark.parametrize("variable", ["True", '"false"', "0", "yes"])
def test_what_may_mean_approval_or_not_promotes_nothing(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_VISTA_APPROVAL", variable)
    approval = PromotionApproval(task_id="approve_promotion", retrained="retrain_downstream")
    with pytest.raises(AirflowFailException, match=r"is .*: write true or false"):
        approval.execute(context_of({}))


def test_a_promotion_that_nobody_answers_keeps_no_other_day_waiting() -> None:
    """One run of the daily refresh is active at a time."""
    assert timedelta(days=1) > RESPONSE
    said = f"{RESPONSE // timedelta(hours=1)} hours"
    operations = Path(__file__).parents[2] / "docs" / "operations.md"
    assert [said in text for text in (NOBODY, APPROVAL_TRIAGE, operations.read_text())] == [True] * 3


class Receiver(HTTPServer):
    """Keeps what is posted to it."""

    posted: list[tuple[str | None, dict[str, Any]]]
    answers: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.posted.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(server.answers)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = Receiver(("127.0.0.1", 0), Handler)
    server.posted, server.answers = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def failure() -> Any:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="deliver", try_number=2, log_url="http://page")
    return {"ti": ti, "exception": ValueError("no room")}


def configure(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    connection = {"conn_type": "generic", "host": f"{host}/secret-hook", "password": "secret-token"}
    monkeypatch.setenv("AIRFLOW_CONN_VISTA_ALERTS", json.dumps(connection))


def test_a_failure_is_told(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, receiver.url)
    alert(failure())
    ((login, message),) = receiver.posted
    assert login == "Bearer secret-token"
    assert message == {
        "dag": "d", "run": "r", "task": "deliver", "attempt": 2, "reason": "no room", "log": "http://page",
    }  # fmt: skip


@pytest.mark.parametrize("why", ["it answered 503", "ConnectError", "UnsupportedProtocol", "InvalidURL"])
def test_an_alert_that_is_not_taken_is_an_error_in_the_log_without_a_secret(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """The path of a hook is often one, and everybody who sees a task's page reads its log."""
    hosts = {"ConnectError": "http://127.0.0.1:9", "UnsupportedProtocol": "hook", "InvalidURL": "http://h:x"}
    configure(monkeypatch, hosts.get(why, receiver.url))
    receiver.answers = 503
    with caplog.at_level(logging.INFO, "vista"):
        alert(failure())
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("vista")]
    assert line == f"the alert about deliver could not be sent by connection vista_alerts: {why}"


def test_without_a_connection_nothing_is_sent_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vista"):
        alert(failure())
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("vista")]
    assert line == "nobody is told of this failure: there is no connection vista_alerts"
