"""`make sql QUERY="SELECT ..." [DATASET=kuairand]`: what HiveServer2 answers, as a table.

The server is that of the stack which is up; with DATASET that of the last `make run BACKENDS=real`, which is
started for the query. It asks only: its user may change every table, and a table that is dropped by
a slip of the hand takes the catalog with it.
"""

import os
import re
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
ASKS = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN")
"""First words of statements that change nothing, unless INSERT follows."""
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`", re.DOTALL)
EXAMPLE = 'make sql QUERY="SELECT space, epoch, count(*) FROM usable_summaries GROUP BY space, epoch"'


def asked(query: str) -> str:
    """The statement, without a semicolon at its end. Raises `InputError`: it may change something."""
    query = query.strip().removesuffix(";").rstrip()
    if not query:
        raise InputError(f"no QUERY was given: {EXAMPLE}")
    bare = _QUOTED.sub("''", query)
    if ";" in bare:
        raise InputError(f"QUERY {query!r}: write one statement, without a semicolon inside")
    first = re.match(r"[\s(]*(\w+)", bare)
    words = [first[1].upper(), *re.findall(r"\w+", bare.upper())[1:]] if first else []
    # Hive's EXPLAIN ANALYZE runs what it explains
    if not words or words[0] not in ASKS or "INSERT" in words or words[:2] == ["EXPLAIN", "ANALYZE"]:
        raise InputError(
            f"QUERY {query!r} may change something: make sql takes {', '.join(ASKS)}, without INSERT or "
            "EXPLAIN ANALYZE; if you mean it, use a JDBC client of your own"
        )
    return query


def answer(address: str, password: str, query: str) -> str:
    """The rows as a table with a line of names. Raises `InputError`: there are no tables yet, `BackendError`
    as Hive says it."""
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
        if f"Database does not exist: {CATALOG_DATABASE}" in str(error):
            raise InputError(
                f"HiveServer2 at {address} has no tables, nothing has been exported yet: start "
                "production_refresh"
            ) from error
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
    dataset = environment.get("DATASET", "")
    try:
        query = asked(environment.get("QUERY", ""))
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
