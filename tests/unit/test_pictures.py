"""The pictures of the guide are those that tests take in a browser, so that `make pictures` takes all of them
anew. That its pages show them, and no others, is for `test_operations_guide.py`.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "stack").glob("test_*.py"))


def test_the_pictures_of_the_guide_are_those_that_are_taken() -> None:
    taken = re.findall(r'keep_picture\([\w.]+, "([\w-]+)"\)', TESTS)
    assert len(taken) == TESTS.count("keep_picture("), "a name that is not written out"
    assert len(taken) == len(set(taken)), "one would overwrite another"
    kept = (ROOT / "docs" / "guide" / "pictures").iterdir()
    assert {f"{name}.png" for name in taken} == {path.name for path in kept}
