"""`make infra`: the real servers of the tests and of the local stack, from Debian and Maven Central.

Programs come as Debian packages if this user may install them. Jars go into one folder per version below
build/servers and must have the checksums of infra/conf/*/SHA256SUMS. What is there already is left alone.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.java import SERVERS, VERSIONS, class_path, folder_of
from infra.kafka import archive_classes
from infra.processes import wait_until
from infra.servers import CONF, PACKAGES, call, program
from vista.errors import BackendError, InputError, VistaError
from vista.runs import alone

PROGRESS_S = 10.0
SQL = "scripts/metastore/upgrade/postgres"


def install() -> None:
    """Install what is missing. Raises `InputError`: what an administrator must install; `BackendError`."""
    _install_programs()
    SERVERS.mkdir(parents=True, exist_ok=True)
    finish: dict[str, Callable[[Path], None]] = {
        "kafka": archive_classes,
        "metastore": _unpack_metastore,
        "hive": _compile_authenticator,
    }
    with alone(SERVERS / "lock"):
        for name, last_step in finish.items():
            _install_jars(name, last_step)


def _install_programs() -> None:
    packages = sorted({package for name, package in PACKAGES.items() if not _is_there(name)})
    if not packages:
        return
    line = f"apt-get install --yes --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise InputError(f"missing Debian packages: install them as root, then make infra again: {line}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    _watch(["apt-get", "update", "-qq"], "Debian's package lists", quiet)
    _watch(line.split(), f"Debian packages {', '.join(packages)}", quiet)


def _is_there(name: str) -> bool:
    try:
        program(name)
    except BackendError:
        return False
    return True


def _install_jars(name: str, last_step: Callable[[Path], None]) -> None:
    folder, lock = folder_of(name), (CONF / name / "SHA256SUMS").read_text()
    done = folder / "installed"
    if done.exists() and done.read_text() == lock:
        return
    part = folder.with_name(f"{folder.name}.part")
    for old in (folder, part):
        shutil.rmtree(old, ignore_errors=True)
    maven = [program("mvn"), "--quiet", "--batch-mode", "--strict-checksums"]
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={part / 'lib'}"]
    _watch([*maven, "--file", str(CONF / name / "pom.xml"), *goal], f"{name} {VERSIONS[name]}")
    verify(part / "lib", lock, CONF / name)
    part.rename(folder)
    last_step(folder)
    done.write_text(lock)


def verify(folder: Path, lock: str, of: Path) -> None:
    """Raises `BackendError` with the names of the files that are not as locked."""
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lock.splitlines())}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        sums = of / "SHA256SUMS"
        raise BackendError(
            f"{folder} is not what {sums} locks: {', '.join(wrong)}. Delete these from ~/.m2 and try again; "
            f"after a wanted change of the pom: (cd {folder} && sha256sum *) > {sums}"
        )


def _unpack_metastore(folder: Path) -> None:
    (archive,) = (folder / "lib").iterdir()
    with tarfile.open(archive) as content:
        content.extractall(folder / "unpacked", filter="data")
    archive.unlink()
    (top,) = (folder / "unpacked").iterdir()
    for jar in (top / "lib").glob("*.jar"):
        jar.rename(folder / "lib" / jar.name)
    (top / SQL).rename(folder / "sql")
    shutil.rmtree(folder / "unpacked")


def _compile_authenticator(folder: Path) -> None:
    source = CONF / "hive" / "FilePasswords.java"
    command = [program("javac"), "-d", str(folder / "classes"), str(source)]
    call(command, f"compiling {source}", environment=class_path(folder / "lib"))


def _watch(command: Sequence[str], what: str, environment: dict[str, str] | None = None) -> None:
    """Run a command to its end and say every ten seconds that it goes on. Raises `BackendError`."""
    started_s = time.monotonic()
    print(f"installing {what}", flush=True)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        while not wait_until(lambda: process.poll() is not None, PROGRESS_S):
            print(f"installing {what}: {time.monotonic() - started_s:.0f} s", flush=True)
        if process.returncode != 0:
            output.seek(0)
            raise BackendError(f"installing {what} failed: {' '.join(command)}\n{output.read().strip()}")
    print(f"installed {what} in {time.monotonic() - started_s:.0f} s", flush=True)


def main() -> int:
    """Exit code 0 all is there, 1 something failed, 2 an administrator must install something."""
    try:
        install()
    except VistaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"the servers are in {SERVERS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
