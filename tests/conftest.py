"""Fixtures that several folders share."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import must_hold
import pytest

if TYPE_CHECKING:
    from refreshes import Places

    from infra.hive import HiveServer, Metastore
    from infra.kafka import Kafka
    from infra.postgres import Postgres
    from infra.s3 import S3

# Of `make test`: with them a make that a test starts prints other lines than a user's.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether to run at the specification's sizes and times, on a machine that does nothing else."""
    return must_hold.is_full_size()


@pytest.fixture
def found(request: pytest.FixtureRequest) -> must_hold.Found:
    """What this test counts, for the table of what must hold."""
    return request.node.stash.setdefault(must_hold.FOUND, must_hold.Found())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    must_hold.note_line(item, report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    must_hold.show(terminalreporter)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets: `VISTA_DATA_DIR`, by default ../shared/data. CI must have it."""
    path = Path(os.environ.get("VISTA_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        message = f"no real data at {path}: set VISTA_DATA_DIR; this test did NOT run"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def smoke_refresh(tmp_path_factory: pytest.TempPathFactory) -> "Places":
    """One uninterrupted `make run DATASET=smoke`, shared by all tests that look at its results, those of
    pytest's other workers too."""
    from refreshes import Places  # not in Airflow's environment, which uses this file too

    from vista.runs import alone

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    places = Places(folder / "smoke-refresh")
    with alone(folder / "smoke-refresh.lock"):
        if not (places.latest / "report.json").exists():
            places.run("DATASET=smoke")
    return places


@pytest.fixture(scope="session")
def servers_place() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="vista-servers-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def s3(servers_place: Path) -> "Iterator[S3]":
    """An S3 without buckets."""
    from infra.s3 import running_s3

    with running_s3(servers_place / "s3") as server:
        yield server


@pytest.fixture(scope="session")
def postgres(servers_place: Path) -> "Iterator[Postgres]":
    """The metastore's database."""
    from infra.postgres import running_postgres

    with running_postgres(servers_place / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def metastore(servers_place: Path, postgres: "Postgres", s3: "S3") -> "Iterator[Metastore]":
    """A real metastore, over PostgreSQL, that also looks at the S3."""
    from infra.hive import running_metastore

    with running_metastore(servers_place / "metastore", postgres, s3) as server:
        yield server


@pytest.fixture(scope="session")
def hiveserver(servers_place: Path, metastore: "Metastore") -> "Iterator[HiveServer]":
    """SQL over the metastore."""
    from infra.hive import running_hiveserver

    with running_hiveserver(servers_place / "hiveserver", metastore) as server:
        yield server


@pytest.fixture(scope="session")
def kafka(servers_place: Path) -> Iterator["Kafka"]:
    """One broker of Kafka for all tests, of which each takes a topic; one port is plain, one has TLS."""
    from infra.kafka import running_kafka
    from infra.tls import make_certificates

    with running_kafka(servers_place / "kafka", 1, make_certificates(servers_place / "tls")) as kafka:
        yield kafka
