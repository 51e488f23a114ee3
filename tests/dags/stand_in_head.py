"""A stand-in for a Ray head, for what a real one cannot be made to do at will (`test_broken_answers.py`).

It speaks the part of the Jobs REST API that the operator uses and runs each entrypoint as a real process.
"""

import asyncio
import io
import os
import subprocess
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

TOKEN = "secret-of-the-test"


@dataclass
class Job:
    process: "subprocess.Popen[bytes]"
    log: Path
    request: dict[str, object]
    stopped: bool = False
    started_s: float = field(default_factory=time.time)


@dataclass
class Head:
    """A stand-in head. `python` is what `VISTA_PYTHON` names; a tail ends after `tail_characters`."""

    directory: Path
    python: Path
    url: str = ""
    tail_characters: int | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0
    submissions: int = 0
    starting: int = 0  # submissions that fail until the head's agent is there
    is_page: bool = False  # another server of which everything is a page
    lost_answers: int = 0  # submissions that begin a job and whose connection breaks
    thinks_s: float = 0.0  # before it begins a job
    asked: threading.Event = field(default_factory=threading.Event)  # to submit a job

    def stage_is(self, script: str) -> None:
        """What every stage does from now on: a shell script; $3 is the stage's name."""
        self.python.write_text(f"#!/bin/sh\n{script}\n")
        self.python.chmod(0o755)

    @web.middleware
    async def authorised(self, request: web.Request, handler: object) -> web.StreamResponse:
        if self.is_page:
            return web.Response(text="<html></html>", content_type="text/html")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, text="Unauthorized: invalid token")
        return await handler(request)  # type: ignore[operator, no-any-return]

    async def get_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        self.uploads += 1
        return web.Response()

    async def submit(self, request: web.Request) -> web.Response:
        self.asked.set()
        await asyncio.sleep(self.thinks_s)
        if self.starting:
            self.starting -= 1
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        asked = await request.json()
        self.submissions += 1
        name = asked["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"{name} already exists")
        place = self.directory / name
        content = self.packages[asked["runtime_env"]["working_dir"].removeprefix("gcs://")]
        zipfile.ZipFile(io.BytesIO(content)).extractall(place)
        log = self.directory / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                asked["entrypoint"], shell=True, cwd=place, stdout=file, stderr=file,
                env={**os.environ, "VISTA_PYTHON": str(self.python)},
            )  # fmt: skip
        self.jobs[name] = Job(process, log, asked)
        if self.lost_answers:
            self.lost_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"submission_id": name})

    async def find(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        if job is None:
            return web.Response(status=404, text="Job does not exist")
        code = job.process.poll()
        status = {None: "RUNNING", 0: "SUCCEEDED"}.get(code, "STOPPED" if job.stopped else "FAILED")
        started_ms = int(job.started_s * 1_000)
        return web.json_response(
            {"status": status, "message": "", "driver_exit_code": code, "start_time": started_ms}
        )

    async def stop(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        if job is None:
            return web.Response(status=404, text="Job does not exist")
        job.stopped = job.process.poll() is None
        job.process.terminate()
        return web.json_response({"stopped": True})

    async def logs(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        if job is None:
            return web.Response(status=404, text="Job does not exist")
        return web.json_response({"logs": job.log.read_text()})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        job, sent = self.jobs[request.match_info["name"]], 0
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            over = job.process.poll() is not None
            text = job.log.read_text()[: self.tail_characters]
            if len(text) > sent:
                await socket.send_str(text[sent:])
                sent = len(text)
            if over or sent == self.tail_characters:
                break
            await asyncio.sleep(0.05)
        await socket.close()
        return socket

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self.authorised], client_max_size=2**26)
        application.add_routes(
            [
                web.get("/api/packages/gcs/{name}", self.get_package),
                web.put("/api/packages/gcs/{name}", self.put_package),
                web.post("/api/jobs/", self.submit),
                web.get("/api/jobs/{name}", self.find),
                web.post("/api/jobs/{name}/stop", self.stop),
                web.get("/api/jobs/{name}/logs", self.logs),
                web.get("/api/jobs/{name}/logs/tail", self.tail),
            ]
        )
        return application
