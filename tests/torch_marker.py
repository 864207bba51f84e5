"""Find the test files that need torch, from their imports. `make unit` runs the others and does not load torch."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "compressai", "torchvision"}


@functools.cache
def needs_torch(test_file: Path) -> bool:
    """Whether torch is imported by the file, a conftest of its folders, or a module of this project they import."""
    conftests = [folder / "conftest.py" for folder in test_file.parents if folder.is_relative_to(ROOT / "tests")]
    return any(_reaches_torch(path) for path in (test_file, *conftests) if path.exists())


@functools.cache
def _reaches_torch(start: Path) -> bool:
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = _imports(path)
        if any(name.split(".")[0] in HEAVY for name in names):
            return True
        waiting += [module for name in names if (module := ROOT / (name.replace(".", "/") + ".py")).exists()]
    return False


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Every imported module, also inside functions. `from a import b` may import the module a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)
