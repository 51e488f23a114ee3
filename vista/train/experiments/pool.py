"""Cells in processes of their own, some at a time, each for a limited time."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

from vista.train.experiments.cell import CellJob
from vista.train.experiments.fingerprint import ROOT

LOG = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "vista.train.experiments.cell")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
"""A cell's own arithmetic is torch's, which it limits itself; these are for the libraries around it."""


def make_cells(
    jobs: Mapping[CellJob, float], workers: int, limit_s: float
) -> Iterator[tuple[CellJob, int | None]]:
    """Each job when it has ended, with the exit code of its process, None if that was killed at the limit.
    Closing the iterator ends the rest.

    A job's value is its work in relation to the others', for the estimate of what is left.
    """
    running: set[subprocess.Popen[bytes]] = set()

    def make(job: CellJob) -> int | None:
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | ONE_THREAD
        )
        running.add(process)
        try:
            process.communicate(job.model_dump_json().encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None
        finally:
            running.discard(process)
        return process.returncode

    started, work, finished = time.monotonic(), sum(jobs.values()), 0.0
    with ThreadPoolExecutor(workers) as threads:
        futures = {threads.submit(make, job): job for job in jobs}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                job = futures[future]
                yield job, future.result()
                finished += jobs[job]
                rest_s = (time.monotonic() - started) * (work - finished) / finished
                LOG.info("%d of %d cells, about %.0f min left", count, len(jobs), rest_s / 60)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
