"""The code that a job needs, as a deterministic zip: equal sources give equal names, on every machine."""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vista", "kernels")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """A zip for Ray's package store. `uri` names the content, so an upload is needed once per content."""

    name: str
    content: bytes

    @property
    def uri(self) -> str:
        return f"gcs://{self.name}"


def package(root: Path = ROOT) -> Package:
    """Pack the files of `FOLDERS` below `root`. The name is a hash of names and contents."""
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _sources(root):
            name, content = path.relative_to(root).as_posix(), path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            entry = zipfile.ZipInfo(name, _FIXED_TIME)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return Package(f"_ray_pkg_{digest.hexdigest()[:32]}.zip", buffer.getvalue())


def _sources(root: Path) -> list[Path]:
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*"))
    return sorted(path for path in found if path.is_file() and path.parent.name != "__pycache__")
