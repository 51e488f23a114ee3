"""Servers that are Java programs: where `make infra` puts their jars, and how a JVM is started."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.servers import CONF, program
from vista.errors import BackendError

SERVERS = Path(__file__).resolve().parents[1] / "build" / "servers"
VERSIONS = {"kafka": "4.3.1", "hive": "4.0.1", "metastore": "4.0.1"}


def folder_of(name: str) -> Path:
    """Where the jars of a server are, one folder per version."""
    return SERVERS / f"{name}-{VERSIONS[name]}"


def installed(name: str) -> Path:
    """The folder of an installed server. Raises `BackendError` if it is not installed."""
    folder = folder_of(name)
    if not (folder / "installed").exists():
        raise BackendError(f"{name} {VERSIONS[name]} is not installed in {folder}: make infra")
    return folder


def java(place: Path, heap_mb: int, options: Sequence[str], main: str, *arguments: str) -> list[str]:
    """The command of a small JVM for a main class of the class path; temporary files are in the folder."""
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    small = [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    quiet = [f"-Dlog4j.configurationFile={CONF / 'log4j2.properties'}", "-Dlog4j.shutdownHookEnabled=false"]
    local = [f"-Djava.io.tmpdir={temporary}", "-Djava.net.preferIPv4Stack=true"]
    return [program("java"), *small, *quiet, *local, *options, main, *arguments]


def class_path(*folders: Path) -> Mapping[str, str]:
    """CLASSPATH: each folder's jars, or the folder if it has none; in a lasting order, no jar twice."""
    entries: dict[str, Path] = {}
    for folder in folders:
        for jar in sorted(folder.glob("*.jar")):
            entries.setdefault(jar.name, jar)
        if not any(folder.glob("*.jar")):
            entries[str(folder)] = folder
    return {"CLASSPATH": os.pathsep.join(map(str, entries.values()))}
