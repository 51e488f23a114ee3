"""What a stage does in tests of what runs it: Ray starts a shell script where Python would be."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

DISPATCH = """#!/bin/sh
stage=$3
case ' {real} ' in *" $stage "*) exec '{python}' "$@";; esac
run=nameless
for word; do
  case $before in --run-id | --grid) run=$word;; esac
  before=$word
done
cd '{place}' && . "./$run.sh"
"""

REPORT = """cat <<'END'
{
  "delivered": true, "space": "s", "epoch": 1,
  "gate": {"promote": true, "reasons": ["it is better"]},
  "promoted": true, "before": null, "new_foundation": true,
  "release": {"id": "r-1", "space": "s", "epoch": 1, "foundation": "f"}
}
END
"""
"""Prints what the reports of all stages have in common with what tasks hand on."""


class ScriptedStages:
    """The stages of run R do what the script R.sh says; it knows $stage, $run and its arguments. Files are
    its signals. Jobs that are `real` are our own, on the embedded back ends in `place`."""

    def __init__(self, place: Path, real: Sequence[str] = ()) -> None:
        self.place = place
        place.mkdir()
        self._python = place / "python"
        text = DISPATCH.format(place=place, real=" ".join(real), python=sys.executable)
        self._python.write_text(text)
        self._python.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's node has to know."""
        where = {"VISTA_HOME": str(self.place), "VISTA_RUNS": str(self.place / "runs")}
        return {**os.environ, **where, "VISTA_PYTHON": str(self._python)}

    def do(self, run: str, script: str) -> None:
        """The stages of `run` do this from now on."""
        (self.place / f"{run}.sh").write_text(f"{script}\n")

    def signal(self, name: str) -> None:
        """Let a script go on that waits for this file."""
        (self.place / name).touch()


def wait_for_signal(name: str) -> str:
    """The line of a script that waits for `signal(name)`."""
    return f"while ! test -e {name}; do sleep 0.1; done"
