"""Which code a run names: git's revision of the sources as they are now."""

import subprocess
from pathlib import Path

import pytest

from vista.revision import git_revision


def git(place: Path, *arguments: str) -> None:
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    subprocess.run(["git", "-C", str(place), *who, *arguments], check=True, capture_output=True)


def commit(place: Path, text: str) -> str:
    """The revision with a file's new text."""
    (place / "code.py").write_text(text)
    git(place, "add", ".")
    git(place, "commit", "-m", text)
    return git_revision(place)


def test_an_edit_is_seen_and_a_commit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISTA_GIT_REVISION", raising=False)
    git(tmp_path, "init")
    first = commit(tmp_path, "one")
    (tmp_path / "code.py").write_text("edited")
    assert git_revision(tmp_path) == f"{first}-dirty"
    second = commit(tmp_path, "two")
    assert len({first, second}) == 2
    assert {len(first), len(second)} == {40}


def test_a_copy_without_git_is_unknown_unless_its_image_says_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISTA_GIT_REVISION", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() == "unknown"
    monkeypatch.setenv("VISTA_GIT_REVISION", "of the image")
    assert git_revision(tmp_path) == "of the image"
