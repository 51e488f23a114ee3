"""The glossary says where each word lives: those places must exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_place_exists_and_holds_its_names() -> None:
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in (ROOT / "GLOSSARY.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| word")
    ]
    assert len(rows) > 50
    missing = []
    for word, _, where in rows:
        path, *names = re.findall(r"`([^`]+)`", where)
        text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
        missing += [f"{word.strip()}: {path} {name}" for name in ["", *names] if not text or name not in text]
    assert not missing


def test_every_word_is_there_once() -> None:
    words = re.findall(r"^\| ([^|]+?) \|", (ROOT / "GLOSSARY.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for word in words if word != "word"]
    assert len(words) == len(set(words))
