"""`make sql QUERY="SELECT ..." [DATASET=kuairand]`: what HiveServer2 answers, as a table.

The server is that of the stack which is up; with DATASET that of the last `make run BACKENDS=real`, which is
started for the query. USE and SET are of no use: every query is a session of its own.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from impala.dbapi import connect
from impala.error import Error
from thrift.Thrift import TException

from infra.backends import CATALOG_DATABASE, HIVESERVER, claim, servers_of, start_hive
from infra.environment import home_of
from infra.kept_secrets import kept_secret
from infra.run import only_run
from infra.servers import HOST
from infra.services import Services
from infra.stack.state import Place
from vista.errors import BackendError, InputError, VistaError
from vista.evaluate.report import text_table

ANSWER_S = 600.0
"""The first query of a fresh server takes up to a minute."""
EXAMPLE = 'make sql QUERY="SELECT space, epoch, count(*) FROM usable_summaries GROUP BY space, epoch"'


def answer(address: str, password: str, query: str) -> str:
    """The rows as a table with a line of names. Raises `BackendError` as Hive says it."""
    host, _, port = address.rpartition(":")
    access = {"auth_mechanism": "PLAIN", "user": "vista", "password": password, "database": CATALOG_DATABASE}
    try:
        with (
            closing(connect(host, int(port), timeout=ANSWER_S, **access)) as connection,
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute(query)
            names = [column[0] for column in cursor.description or ()]
            rows = [[str(value) for value in row] for row in cursor.fetchall()] if names else []
    except (Error, TException, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(f"HiveServer2 at {address}: {why}") from error
    return text_table(names, rows, left=range(len(names))) if names else "done"


def of_stack(stack: Place, query: str) -> str:
    """By the server of a stack. Raises `InputError`: it has none."""
    state = stack.read() if stack.supervisor() else None
    servers = {service.name: service for service in state.services} if state else {}
    if HIVESERVER not in servers:
        raise InputError(
            f"no HiveServer2 is up in {stack.path}: make up, or DATASET=... of a run with BACKENDS=real"
        )
    return answer(servers[HIVESERVER].address, kept_secret(stack.path / HIVESERVER, "vista"), query)


def of_run(home: Path, query: str) -> str:
    """By a server over the tables of a deployment. Raises `InputError`: it has none, or a run uses them."""
    place = servers_of(home)
    if not (place / HIVESERVER).is_dir():
        raise InputError(f"there are no tables in {place}: make run BACKENDS=real with this DATASET first")
    with only_run(home), Services() as services:
        claim(place)
        hive = start_hive(services, place)
        return answer(f"{HOST}:{hive.hiveserver.port}", hive.hiveserver.vista_password.read_text(), query)


def main(environment: Mapping[str, str]) -> int:
    """Exit code 0 done, 1 it failed, 2 a wrong variable."""
    query, dataset = environment.get("QUERY", ""), environment.get("DATASET", "")
    try:
        if not query:
            raise InputError(f"no QUERY was given: {EXAMPLE}")
        if dataset:
            print(of_run(home_of(dataset, "real", environment), query))
        else:
            print(of_stack(Place.named(environment), query))
    except VistaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
