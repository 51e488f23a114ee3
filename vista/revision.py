"""Which code this is."""

import os
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent


def git_revision(sources: Path = SOURCES) -> str:
    """The revision of the sources: `VISTA_GIT_REVISION`, for an image without a repository, else git's, with
    `-dirty` if files were changed since, else "unknown"."""
    if "VISTA_GIT_REVISION" in os.environ:
        return os.environ["VISTA_GIT_REVISION"]
    command = ["git", "-C", str(sources), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"
