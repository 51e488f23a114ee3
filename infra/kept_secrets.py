"""The secrets of servers: made once, and kept in a file that only its owner may read. All of a stack are in
one; what a program reads in another form is written anew from it.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from infra.servers import write_private

SECRETS = "secrets.json"


def keep_together(place: Path) -> Path:
    """The file that from now on has the secrets of all servers whose folders lie in this one."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / SECRETS
    if not file.exists():
        write_private(file, "{}")
    return file


def kept_secret(place: Path, name: str) -> str:
    """A secret of the server in the folder, made if it is not there."""
    file, prefix = _where(place)
    known = _read(file)
    if prefix + name not in known:
        known |= {prefix + name: secrets.token_urlsafe(24)}
        write_private(file, json.dumps(known, indent=2) + "\n")
    return known[prefix + name]


def kept_secrets(place: Path) -> Mapping[str, str]:
    """All of a server, by name."""
    file, prefix = _where(place)
    found = _read(file).items()
    return {name.removeprefix(prefix): secret for name, secret in found if name.startswith(prefix)}


def password_file(place: Path, user: str) -> Path:
    """A file with nothing but a user's password, as clients read it."""
    path = place / f"{user}.password"
    write_private(path, kept_secret(place, user))
    return path


def _where(place: Path) -> tuple[Path, str]:
    together = place.parent / SECRETS
    return (together, f"{place.name}/") if together.exists() else (place / SECRETS, "")


def _read(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found
