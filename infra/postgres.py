"""PostgreSQL: the database of the Hive metastore, and in the local stack of Airflow and MLflow."""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from infra.kept_secrets import kept_secret, kept_secrets, password_file
from infra.servers import (
    HOST,
    Server,
    call,
    filled,
    kept_ports,
    private_folder,
    program,
    running,
    write_private,
)
from vista.errors import BackendError

START_S = 60.0
SUPERUSER = "postgres"


@dataclass(frozen=True, slots=True)
class Database:
    """A database and the role of the same name that owns it; the file tells clients the password."""

    name: str
    port: int
    password: str = field(repr=False)
    pgpass: Path

    @property
    def url(self) -> str:
        """As SQLAlchemy writes it, without the password."""
        return f"postgresql+psycopg://{self.name}@{HOST}:{self.port}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """Where the client finds the role's password."""
        return {"PGPASSFILE": str(self.pgpass)}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server and its folder."""

    server: Server
    port: int
    place: Path

    def sql(self, statements: str, role: str = SUPERUSER) -> str:
        """Run statements as a role in its database until one fails; rows without a header.

        Raises `BackendError`.
        """
        options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        where = ["-h", HOST, "-p", str(self.port), "-U", role, "-d", role]
        environment = {"PGPASSFILE": str(self.place / "pgpass"), "PGCONNECT_TIMEOUT": "5"}
        command = [program("psql"), *options, *where]
        return call(command, f"SQL on {self.server.name}", environment=environment, stdin=statements).strip()

    def database(self, name: str) -> Database:
        """The database of that name, made with its role if it is not there."""
        password, pgpass = kept_secret(self.place, name), self.place / f"{name}.pgpass"
        if not self.sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{name}'"):
            self.sql(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
            _list_passwords(self.place, self.port)
        if not self.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
            self.sql(f'CREATE DATABASE "{name}" OWNER "{name}"')
        write_private(pgpass, f"{HOST}:{self.port}:{name}:{name}:{password}\n")
        return Database(name, self.port, password, pgpass)


@contextmanager
def running_postgres(place: Path) -> Iterator[Postgres]:
    """A server whose data stay in the folder.

    Root starts it as the user postgres, who must be let through to the folder.
    """
    place = private_folder(place)
    (port,) = kept_ports(place, 1)
    superuser, data = password_file(place, SUPERUSER), place / "data"
    _list_passwords(place, port)
    write_private(place / "postgresql.conf", filled("postgres/postgresql.conf", port=port))
    if _is_root():
        _let_through(place)
    if not data.exists():
        _make(data, superuser)
    settings = ["-D", str(data), "-c", f"config_file={place / 'postgresql.conf'}"]
    command = _as_owner([program("postgres"), *settings])
    # SIGTERM would wait for every client to leave
    server = Server(
        "postgres", place, command, lambda: _answers(postgres), START_S, stop_signal=signal.SIGINT
    )
    postgres = Postgres(server, port, place)
    with running([server]):
        yield postgres


def _list_passwords(place: Path, port: int) -> None:
    lines = [f"{HOST}:{port}:*:{role}:{password}\n" for role, password in kept_secrets(place).items()]
    write_private(place / "pgpass", "".join(lines))


def _make(data: Path, superuser: Path) -> None:
    part = data.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", f"--username={SUPERUSER}"]
    files = [f"--pwfile={superuser}", f"--pgdata={part}"]
    call(_as_owner([program("initdb"), *options, *files]), f"initdb in {part}")
    part.rename(data)


def _is_root() -> bool:
    return os.geteuid() == 0


def _as_owner(command: Sequence[str]) -> Sequence[str]:
    if not _is_root():
        return command
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return [program("setpriv"), *user, "--pdeathsig=keep", "--", *command]


def _let_through(place: Path) -> None:
    closed = [folder for folder in place.parents if not folder.stat().st_mode & 0o001]
    if closed:
        raise BackendError(
            f"{closed[-1]} is closed to the user postgres, as whom PostgreSQL runs because it refuses root: "
            f"choose another place than {place}, or: chmod o+x {closed[-1]}"
        )
    for path in (place, place / f"{SUPERUSER}.password", place / "postgresql.conf"):
        shutil.chown(path, "postgres")


def _answers(postgres: Postgres) -> bool:
    with suppress(BackendError):
        return postgres.sql("SELECT 1") == "1"
    return False
