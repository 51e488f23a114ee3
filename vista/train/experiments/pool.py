"""Cells in processes of their own, some at a time, each for a limited time.

A process that has to be killed has trained for nothing, but for the epochs that it ended: a cell that got on
in its process gets another one, and gets it at the end of an epoch if the next would be cut off.
"""

import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vista.evaluate.report import counted, duration
from vista.train.experiments.cell import CellJob
from vista.train.experiments.fingerprint import ROOT

LOG = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "vista.train.experiments.cell")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
"""A cell's own arithmetic is torch's, which it limits itself; these are for the libraries around it."""

POLL_S = 0.2
"""Asked in turns: polars' signal handler leaves a thread that waits for a lock asleep on Ctrl-C."""


@dataclass(slots=True)
class _Running:
    """A process, and the time by which it is over or killed; its last epoch, and since when that is kept."""

    job: CellJob
    process: subprocess.Popen[bytes]
    end_s: float
    epoch: Path | None
    since_s: float
    got_on: bool = False

    @classmethod
    def start(cls, job: CellJob, limit_s: float) -> "_Running":
        process = subprocess.Popen(
            COMMAND,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # a terminal's Ctrl-C is for the launcher, which ends its cells
        )
        assert process.stdin is not None
        # It stays open: the cell ends when it closes, however this process ends. One that has ended before it
        # read its job is judged by its exit code, as any other.
        with suppress(BrokenPipeError):
            process.stdin.write(job.model_dump_json().encode() + b"\n")
        now_s = time.monotonic()
        return cls(job, process, now_s + limit_s, job.last_epoch(), now_s)

    def ended(self) -> bool:
        now_s, epoch = time.monotonic(), self.job.last_epoch()
        if epoch not in (None, self.epoch):  # None: there is none yet, or the cell is whole
            if now_s + (now_s - self.since_s) > self.end_s:
                self.end_s = now_s
            self.epoch, self.since_s, self.got_on = epoch, now_s, True
        return self.process.poll() is not None or now_s >= self.end_s

    def exit_code(self) -> int | None:
        """None if the time was over and the process had to be killed."""
        code = self.process.poll()
        self.kill()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


def make_cells(
    jobs: Mapping[CellJob, float], workers: int, limit_s: float
) -> Iterator[tuple[CellJob, int | None]]:
    """Each job when it has ended, with the exit code of its process, None if that was killed at the limit
    before it ended an epoch. Closing the iterator kills the rest.

    A job's value is its work in relation to the others', for the estimate of what is left.
    """
    waiting, running = deque(jobs), list[_Running]()
    started, work, finished = time.monotonic(), sum(jobs.values()), 0.0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_Running.start(waiting.popleft(), limit_s))
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                code = one.exit_code()
                if code is None and one.got_on:
                    LOG.info("%s: goes on after an epoch that it ended", one.job.title)
                    running.append(_Running.start(one.job, limit_s))
                    continue
                yield one.job, code
                finished += jobs[one.job]
                rest_s = (time.monotonic() - started) * (work - finished) / finished
                left = len(waiting) + len(running)
                rest = f", about {duration(rest_s)} left" if left else ""
                LOG.info("%d of %s%s", len(jobs) - left, counted(len(jobs), "cell"), rest)
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.kill()
