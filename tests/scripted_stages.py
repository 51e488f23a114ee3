"""What a stage does in tests of what runs it: Ray starts a shell script where Python would be."""

import os
from pathlib import Path

DISPATCH = """#!/bin/sh
while test "$1" != --run-id; do
  test "$1" = -m && stage=$3
  shift
done
run=$2
cd '{place}' && . "./$run.sh"
"""


REPORT = """cat <<'END'
{
  "delivered": true, "space": "s", "epoch": 1,
  "gate": {"promote": true, "reasons": ["it is better"]},
  "promoted": true, "before": null,
  "release": {"id": "r-1", "space": "s", "epoch": 1, "foundation": "f"}
}
END
"""
"""Prints what the reports of all stages have in common with what tasks hand on."""


class ScriptedStages:
    """The stages of run R do what the script R.sh says; it knows $stage and $run. Files are its signals."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._python = place / "python"
        self._python.write_text(DISPATCH.format(place=place))
        self._python.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's node has to know."""
        return {**os.environ, "VISTA_PYTHON": str(self._python)}

    def do(self, run: str, script: str) -> None:
        """The stages of `run` do this from now on."""
        (self.place / f"{run}.sh").write_text(f"{script}\n")

    def signal(self, name: str) -> None:
        """Let a script go on that waits for this file."""
        (self.place / name).touch()


def wait_for_signal(name: str) -> str:
    """The line of a script that waits for `signal(name)`."""
    return f"while ! test -e {name}; do sleep 0.1; done"
