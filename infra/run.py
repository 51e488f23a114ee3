"""`make run`: one production refresh on this machine, from raw events to a promoted release.

Starts a Ray head and, in Airflow's environment, the real DAG; stops both; prints the figures.
Arguments are KEY=VALUE: DATASET, DATA_DIR, RESUME=1, BACKENDS=real (Hive, Kafka and Redis, which it starts
and stops too), and the fields of `RefreshConfig` in capitals.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import ValidationError

from infra.backends import claim, servers_of, start_backends
from infra.environment import ROOT, home_of, jobs_environment, place_of
from infra.processes import alive, guarded, stop, wait_until
from infra.ray_head import CPUS, connection, new_address, start_ray_head, wait_for
from infra.services import Services
from vista.config import GeneratedConfig, Recipe, RefreshConfig, Settings
from vista.data.rejects import Rejects
from vista.data.sources import SOURCES
from vista.delivery.catalog import open_catalog
from vista.delivery.release import current_release
from vista.errors import BackendError, InputError, StageError, VistaError
from vista.evaluate.report import StageSeconds, print_table, read_report, write_report
from vista.jobs import STAGES
from vista.recipes import RECIPES, recipe_of
from vista.runs import LATEST, RunDirectory

OTHER_RUN_STOPS_S = 60.0
BackendsName = Literal["embedded", "real"]
BACKENDS = "backends"
"""The file of a run's directory that holds the name."""

SETTABLE = tuple(name for name in RefreshConfig.model_fields if name not in ("recipe", "data_dir", "run_id"))


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of `make run`: which run, and where its files, its stores and its log are. `backends` says
    whose: the embedded ones, or real servers."""

    config: RefreshConfig
    backends: BackendsName
    run: RunDirectory
    runs: Path
    home: Path

    @property
    def log(self) -> Path:
        return self.run.path / "run.log"

    @property
    def ray_logs(self) -> Path:
        return self.run.path / "ray-logs"

    def environment(self, backends: Mapping[str, str]) -> dict[str, str]:
        """What the jobs see on Ray's node, Airflow's process too: back ends and places, no secret."""
        mlflow_url = f"sqlite:///{self.home}/mlflow.db"
        return jobs_environment(self.runs, self.home, mlflow_url, backends)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """The launch that KEY=VALUE arguments ask for; nothing of it exists yet. Raises `InputError`: variable,
    value, limit."""
    given = dict(_key_and_value(argument) for argument in arguments)
    runs = place_of("VISTA_RUNS", ROOT / "runs", environment)
    asked = given.pop("BACKENDS", "")
    resumes = given.pop("RESUME", "") not in ("", "0")
    config = _resumed(runs, given) if resumes else _new(given)
    backends = _backends(asked, runs / "latest" / BACKENDS if resumes else None)
    _workers(config)  # limits, before anything is started
    home = home_of(config.recipe, backends, environment)
    launch = Launch(config, backends, RunDirectory.named(runs, config.run_id), runs, home)
    if config.warm_start and not resumes and backends == "embedded":  # servers run later: `prepare` asks them
        from vista.train.warm_start import possible_start  # imports torch: no other launch needs it

        possible_start(recipe_of(config), Settings.from_environment(launch.environment({})))
    return launch


def _backends(asked: str, of_run: Path | None) -> BackendsName:
    """Those that were asked for, or those of the run that is resumed. Raises `InputError`."""
    kept = of_run.read_text(encoding="utf-8") if of_run and of_run.exists() else ""
    found = asked or kept or "embedded"
    if kept and found != kept:
        raise InputError(f"RESUME=1: the run has BACKENDS={kept}, not {found}: leave BACKENDS out")
    for name in get_args(BackendsName):
        if found == name:
            return cast(BackendsName, name)
    raise InputError(f"BACKENDS={found}: it is one of {', '.join(get_args(BackendsName))}")


def _workers(config: RefreshConfig) -> int:
    """The workers of the run's larger training. Raises `InputError` for what cannot be run here."""
    recipe = recipe_of(config)
    workers, cores = max(recipe.foundation.workers, recipe.downstream.workers), os.cpu_count() or 1
    if workers > max(CPUS, cores):
        raise InputError(
            f"WORKERS={workers}: this machine has {cores} cores; give at most {max(CPUS, cores)}"
        )
    return workers


def _key_and_value(argument: str) -> tuple[str, str]:
    key, separator, value = argument.partition("=")
    known = ("DATASET", "DATA_DIR", "RESUME", "BACKENDS", *(name.upper() for name in SETTABLE))
    if not separator or key not in known:
        raise InputError(f"{argument!r}: write NAME=VALUE with one of {', '.join(known)}")
    return key, value


def _new(given: Mapping[str, str]) -> RefreshConfig:
    values = {"recipe": "generated", **_values(given)}
    recipe = recipe_of(_configured(values))
    path = recipe.data.path
    if recipe.data.source != "generated":
        if not (path and Path(path).is_dir()):
            raise InputError(
                f"DATA_DIR={path} is not a folder: name the one with the files of "
                f"{recipe.data.source}, as in make run DATASET={recipe.name} DATA_DIR=path/to/folder"
            )
        SOURCES[recipe.data.source].read(recipe.data, Rejects())  # looks for its files; reads no row yet
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return _configured({**values, "run_id": f"{started}-{values['recipe']}-{secrets.token_hex(2)}"})


def _resumed(runs: Path, given: Mapping[str, str]) -> RefreshConfig:
    latest = RunDirectory(runs / LATEST)
    if not latest.config_file.exists():
        raise InputError(f"RESUME=1: there is no earlier run in {runs}: leave RESUME out")
    config = latest.config()
    wanted = _configured({**config.model_dump(), **_values(given)})
    for name in RefreshConfig.model_fields:
        if getattr(wanted, name) != getattr(config, name):
            raise InputError(
                f"RESUME=1: run {config.run_id} has {name}={getattr(config, name)}, not "
                f"{getattr(wanted, name)}: leave it out, or start a new run without RESUME"
            )
    return config


def _values(given: Mapping[str, str]) -> dict[str, Any]:
    """Fields of `RefreshConfig` by name; a variable that is empty counts as not set."""
    values: dict[str, Any] = {key.lower(): value for key, value in given.items() if value}
    if "dataset" in values:
        values["recipe"] = values.pop("dataset")
    if "data_dir" in values:
        values["data_dir"] = os.path.abspath(os.path.expanduser(values["data_dir"]))
    return values


def _configured(values: Mapping[str, Any]) -> RefreshConfig:
    try:
        return RefreshConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{str(first['loc'][0]).upper()}={first['input']}: {first['msg']}") from error


def launch(given: Launch) -> None:
    """Run the DAG to its end and print what it found. Raises `StageError` with the stage, why, what to do."""
    print(
        f"run {given.config.run_id} of recipe {given.config.recipe} on the deployment {given.home}",
        flush=True,
    )
    started_s = time.monotonic()
    with only_run(given.home, given.run.path) as lock:
        if given.backends == "embedded":
            check_release(given, {})
        print(f"all output: {given.log}", flush=True)
        RunDirectory.open(given.runs, given.config).make_latest()  # RESUME=1 finds it from now on
        (given.run.path / BACKENDS).write_text(given.backends, encoding="utf-8")
        result = _run_dag(given, lock)
    if result["failure"] or result["state"] != "success":
        failure = result["failure"] or {"stage": "production_refresh", "reason": f"it is {result['state']}"}
        raise StageError(
            f"{failure['reason']}\n  stage: {failure['stage']}\n  its log: {given.log}\n"
            "  to go on with this run after mending it: make run RESUME=1"
        )
    update = {"stages": stage_seconds(given.run), "install_s": install_s()}
    report = read_report(given.run.path).model_copy(update=update)
    write_report(given.run.path, report)
    print(f"\n{print_table(report)}")
    print(f"\nreport   {given.run.path}/report.html (and report.json)")
    which = "" if given.backends == "embedded" else f" BACKENDS={given.backends}"
    print(f"look     make ui DATASET={given.config.recipe}{which} opens MLflow's page")
    print(f"took     {time.monotonic() - started_s:.0f} s", flush=True)


def stage_seconds(run: RunDirectory) -> tuple[StageSeconds, ...]:
    """How long each stage took when it was done, be it in an earlier attempt at the run."""
    kept = {name: run.stage(name) for name in STAGES}
    return tuple(StageSeconds(name=name, seconds=one.seconds) for name, one in kept.items() if one)


def _run_dag(given: Launch, lock: int) -> dict[str, Any]:
    """Start Ray and Airflow side by side, run the DAG when both are ready, stop both whatever happens."""
    started_s = time.monotonic()
    result = given.run.path / "airflow.json"
    result.unlink(missing_ok=True)
    with given.log.open("ab") as log, contextlib.ExitStack() as stack:
        environment = given.environment(_start_servers(given, stack))
        address = new_address()
        head = start_ray_head(address, environment, log, given.ray_logs, lock, _workers(given.config))
        stack.callback(head.stop)
        airflow_environment = _airflow_environment(given, environment, address.url, address.token)
        airflow = _start_airflow(given, airflow_environment, lock, started_s)
        stack.callback(stop, airflow)
        stack.callback(_stopping)
        print("starting a local Ray head and Airflow", flush=True)
        wait_for(head, given.ray_logs)
        print(f"Ray head ready after {time.monotonic() - started_s:.0f} s", flush=True)
        assert airflow.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is said below
            os.write(airflow.stdin.fileno(), b"go\n")
        while airflow.poll() is None:
            if head.guard.poll() is not None:
                raise BackendError(_ended(given, f"the local Ray head ended: see {given.ray_logs}"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                airflow.wait(1.0)
        if not result.exists():
            raise BackendError(_ended(given, f"Airflow ended with exit code {airflow.returncode}"))
    loaded: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return loaded


def _start_servers(given: Launch, stack: contextlib.ExitStack) -> Mapping[str, str]:
    """Where the back ends are: nothing to say of the embedded ones."""
    if given.backends == "embedded":
        return {}
    place = servers_of(given.home)
    claim(place)
    print(f"starting the back ends in {place}", flush=True)
    environment = start_backends(stack.enter_context(Services()), place).environment
    check_release(given, environment)
    return environment


def check_release(given: Launch, backends: Mapping[str, str]) -> None:
    """Raises `InputError` if what serves was made of other data: no gate can compare with that.

    Recipes of one data set may share a deployment. A space is named after its recipe.
    """
    settings = Settings.from_environment(given.environment(backends))
    with contextlib.closing(open_catalog(settings.catalog_url)) as catalog:
        release = current_release(catalog)
    theirs = RECIPES.get(release.space.rpartition("-")[0]) if release else None
    if release and theirs and _data_set(theirs("")) != _data_set(recipe_of(given.config)):
        raise InputError(
            f"VISTA_HOME={given.home} serves release {release.id} of space {release.space}, made of other "
            f"data than those of {given.config.recipe}, whose run would replace it: unset VISTA_HOME, or set "
            "it to another folder"
        )


def _data_set(recipe: Recipe) -> tuple[str, GeneratedConfig]:
    return recipe.data.source, recipe.data.generated


def _ended(given: Launch, what: str) -> str:
    """Why a run broke off without a word of its own: the last line of its log, and what to do."""
    lines = given.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it is empty")
    stage = next((name for name in STAGES if given.run.stage(name) is None), "after the last")
    return (
        f"{what} in the middle of the run\n  stage: {stage}\n"
        f"  its log: {given.log}, which ends with: {last}\n"
        "  to go on with this run after mending it: make run RESUME=1"
    )


def _start_airflow(
    given: Launch, environment: Mapping[str, str], lock: int, started_s: float
) -> "subprocess.Popen[bytes]":
    command = [
        str(ROOT / ".venv-airflow" / "bin" / "python"), "-m", "vista.orchestration.embedded",
        "--conf", given.config.model_dump_json(), "--log", str(given.log),
        "--result", str(given.run.path / "airflow.json"), "--started", str(started_s),
    ]  # fmt: skip
    return guarded(command, environment, lock=lock)


def _airflow_environment(
    given: Launch, environment: Mapping[str, str], url: str, token: str
) -> dict[str, str]:
    return {
        **environment,
        **connection(url, token),
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(given.home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


@contextlib.contextmanager
def only_run(home: Path, run: Path | None = None) -> Iterator[int]:
    """Hold the lock of `home`; a run that was killed holds it until the last of its processes has ended.

    Who waits is told of this process and of the folder of its `run`. Raises `InputError` if another goes on.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "run.lock").open("a+") as file:

        def locked() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        if not locked():
            holder = _holder(home / "run.lock")
            print(f"waiting {OTHER_RUN_STOPS_S:.0f} s at most for {holder} to end", flush=True)
            if not wait_until(locked, OTHER_RUN_STOPS_S, every_s=0.5):
                raise InputError(f"{holder} uses {home}: wait for it, or stop it with Ctrl-C")
        file.truncate(0)
        file.write(f"{os.getpid()} {run or ''}")
        file.flush()
        yield file.fileno()


def _holder(lock: Path) -> str:
    """Who holds a lock, by what it wrote there."""
    pid, _, run = lock.read_text(encoding="utf-8").partition(" ")
    if not pid.isdigit():
        return "another run"
    process = f"process {pid}" if alive(int(pid)) else f"what the ended process {pid} has started"
    return f"another run ({process}{', ' if run else ''}{run})"


def install_s() -> float | None:
    """Seconds that `make install` took for both environments, None if they were made in another way."""
    kept = [ROOT / environment / "installed" for environment in (".venv", ".venv-airflow")]
    seconds = [path.read_text().strip() if path.exists() else "" for path in kept]
    return round(sum(map(float, seconds)), 1) if all(seconds) else None


def _stopping() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
    print("stopping Ray and Airflow", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 done, 1 a stage or a back end failed, 2 the input cannot be used, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = None
    try:
        given = parse(arguments, os.environ)
        launch(given)
    except VistaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a place for runs or stores that cannot be used
        print(f"error: {error}: it must exist or be writable, on a disk that is not full", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        begun = given is not None and given.run.config_file.exists()
        how = "to go on with this run: make run RESUME=1" if begun else "no run was begun"
        print(f"interrupted; {how}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
