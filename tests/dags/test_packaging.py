"""The code package: equal for equal sources, complete, nothing else in it."""

import io
import os
import shutil
import zipfile
from pathlib import Path

from vista.orchestration.packaging import ROOT, package


def copy_of_sources(place: Path) -> Path:
    for folder in ("vista", "kernels"):
        shutil.copytree(ROOT / folder, place / folder)
    return place


def test_name_depends_on_content_alone(tmp_path: Path) -> None:
    first = package(copy_of_sources(tmp_path / "a"))
    other = copy_of_sources(tmp_path / "b")
    os.utime(other / "vista" / "config.py", (1, 1))
    (other / "vista" / "__pycache__").mkdir(exist_ok=True)
    (other / "vista" / "__pycache__" / "config.cpython-311.pyc").write_bytes(os.urandom(8))
    assert package(other) == first
    (other / "vista" / "config.py").write_text("changed = 1\n")
    assert package(other).name != first.name


def test_holds_what_jobs_need(tmp_path: Path) -> None:
    names = zipfile.ZipFile(io.BytesIO(package().content)).namelist()
    assert {"vista/__main__.py", "vista/jobs.py", "kernels/__init__.py"} <= set(names)
    assert [
        name for name in names if "__pycache__" in name or name.split("/")[0] not in ("vista", "kernels")
    ] == []
