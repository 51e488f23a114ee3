"""The delivery's real back ends, for one run or for the local stack: Hive, Kafka, a Redis per region."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from infra.hive import HiveServer, Metastore, running_hiveserver, running_metastore
from infra.kafka import running_kafka
from infra.kept_secrets import keep_together
from infra.postgres import Postgres, running_postgres
from infra.redis import running_redis
from infra.servers import HOST
from infra.services import MARK, Services, wait_for_earlier

REGIONS = ("east", "west")
CATALOG_DATABASE, TOPIC = "vista", "vista-summaries"
HIVESERVER = "hiveserver2"
"""The service and its folder."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What was started; `environment` is what `Settings` reads, URLs without secrets."""

    postgres: Postgres
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Hive:
    """What a table needs to be read by SQL."""

    postgres: Postgres
    metastore: Metastore
    hiveserver: HiveServer


def servers_of(home: Path) -> Path:
    """The folder of a deployment's own servers, those of `make run BACKENDS=real`."""
    return home / "servers"


def claim(place: Path) -> None:
    """Before servers are started below a folder by this process: wait for those of an earlier one, mark
    these, keep their secrets together. Raises `BackendError`: earlier ones go on."""
    wait_for_earlier(place)
    os.environ[MARK] = str(place)
    keep_together(place)


def start_backends(services: Services, place: Path) -> Backends:
    """Start all of them below a folder, ready, in order; `services` stops them. Raises `BackendError`."""
    hive = start_hive(services, place)
    kafka = services.enter("kafka", running_kafka(place / "kafka"))
    (broker,), (address,) = kafka.brokers, kafka.bootstrap
    services.ready("kafka", broker.server, address)
    stores = {region: _start_store(services, place, region) for region in REGIONS}
    return Backends(
        hive.postgres,
        {
            "VISTA_CATALOG_URL": f"hive://{HOST}:{hive.metastore.port}/{CATALOG_DATABASE}",
            "VISTA_LOG_URL": f"kafka://{address}/{TOPIC}",
            "VISTA_REGIONS": ",".join(f"{region}={url}" for region, url in stores.items()),
            "VISTA_WAREHOUSE": str(place / "warehouse"),
        },
    )


def start_hive(services: Services, place: Path) -> Hive:
    """Start what SQL needs of them."""
    postgres = services.enter("postgres", running_postgres(place / "postgres"))
    services.ready("postgres", postgres.server, f"{HOST}:{postgres.port}")
    metastore = services.enter("metastore", running_metastore(place / "metastore", postgres))
    services.ready("metastore", metastore.server, f"{HOST}:{metastore.port}")
    hiveserver = services.enter(HIVESERVER, running_hiveserver(place / HIVESERVER, metastore))
    services.ready(HIVESERVER, hiveserver.server, f"{HOST}:{hiveserver.port}")
    return Hive(postgres, metastore, hiveserver)


def _start_store(services: Services, place: Path, region: str) -> str:
    name = f"redis-{region}"
    redis = services.enter(name, running_redis(place / name))
    (node,) = redis.nodes
    services.ready(name, node.server, f"{HOST}:{node.port}")
    options = urlencode({"password_file": str(redis.vista_password)}, safe="/")
    return f"redis://vista@{HOST}:{node.port}?{options}"
