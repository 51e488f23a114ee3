"""What a result depends on, as a digest: the sources of every module of ours that one module imports."""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("vista", "kernels")


def imported_files(module: str, root: Path = ROOT) -> list[Path]:
    """The files of `module` and of all that it imports below `PACKAGES`, directly or not, at its top or
    inside a function; sorted."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        file = _file_of(waiting.pop(), root)
        if file is not None and file not in found:
            found.add(file)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                waiting += _modules_of(node)
    return sorted(found)


def code_digest(module: str, root: Path = ROOT) -> str:
    """Digest of the names and contents of `imported_files`."""
    files = imported_files(module, root)
    return short_digest(*(f"{file.relative_to(root)}\n{file.read_text(encoding='utf-8')}" for file in files))


def short_digest(*texts: str) -> str:
    """16 hexadecimal digits of a SHA-256 over the texts."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _modules_of(node: ast.AST) -> Iterator[str]:
    """What an import statement loads: the modules that it names and the packages that hold them."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]  # a module, or a name in one
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _file_of(module: str, root: Path) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
