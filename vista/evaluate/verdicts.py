"""What a program that measures says of its figures, and how it ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim, what was found, and its limit."""

    claim: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def __str__(self) -> str:
        word, bound = "holds " if self.holds else "MISSED", "least" if self.at_least else "most"
        return f"{word} {self.claim}: {self.found:,.4g}, at {bound} {self.limit:,.4g}"


def judge(verdicts: Sequence[Verdict]) -> None:
    """Print them; one that is missed ends the program with exit code 1."""
    for verdict in verdicts:
        click.echo(str(verdict))
    if not all(verdict.holds for verdict in verdicts):
        raise SystemExit(1)
