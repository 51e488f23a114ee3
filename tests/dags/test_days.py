"""Days as partitions: which run the schedule makes next, after an outage too."""

from datetime import UTC, datetime, timedelta

import pendulum
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import DagRunInfo

import dags.production_refresh

JUST_AFTER = timedelta(hours=2.4)
"""Airflow makes up a tick that is as young as a tenth of the time between two."""


def scheduled(dag: DAG) -> object:
    """As the scheduler knows it."""
    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))


def next_after(last: DagRunInfo | None) -> DagRunInfo:
    dag = scheduled(dags.production_refresh.dag)
    info = dag.next_dagrun_info(last_automated_run_info=last)  # type: ignore[attr-defined]
    assert isinstance(info, DagRunInfo)
    return info


def test_the_first_day_is_the_one_in_which_the_dag_is_enabled() -> None:
    """Or the one before, just after midnight."""
    first = next_after(None)
    assert first.run_after > datetime.now(UTC) - JUST_AFTER, "no day before it is made up"
    assert first.partition_key == str(first.run_after.subtract(days=1).date())


def test_days_of_an_outage_are_made_up_oldest_first() -> None:
    midnight = pendulum.datetime(2026, 1, 2)
    info = DagRunInfo(
        run_after=midnight, data_interval=None, partition_date=midnight, partition_key="2026-01-01"
    )
    keys = []
    for _ in range(3):
        info = next_after(info)
        keys.append(info.partition_key)
    assert keys == ["2026-01-02", "2026-01-03", "2026-01-04"]


def test_a_backfill_has_every_day_that_is_named() -> None:
    dag = scheduled(dags.production_refresh.dag)
    infos = dag.iter_dagrun_infos_between(pendulum.datetime(2026, 1, 1), pendulum.datetime(2026, 1, 3))  # type: ignore[attr-defined]
    assert [info.partition_key for info in infos] == ["2026-01-01", "2026-01-02", "2026-01-03"]
