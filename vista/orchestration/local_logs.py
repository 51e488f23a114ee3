"""Airflow's logging where all of it runs on one machine: the pages read the files, and ask no other process.

Airflow's own asks the worker's or the triggerer's log server for what a running task says, over the network.
Those servers listen beyond loopback, and would only read the same files.
"""

from typing import Any

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
from airflow.utils.log.file_task_handler import FileTaskHandler


class LocalLogs(FileTaskHandler):
    """Reads the files of this machine."""

    def _read_from_logs_server(self, ti: Any, worker_log_rel_path: str) -> Any:
        return [], []


_HANDLERS = DEFAULT_LOGGING_CONFIG["handlers"]
LOGGING = {
    **DEFAULT_LOGGING_CONFIG,
    "handlers": {**_HANDLERS, "task": {**_HANDLERS["task"], "class": f"{__name__}.{LocalLogs.__name__}"}},
}
"""The value of Airflow's option `logging_config_class`."""
