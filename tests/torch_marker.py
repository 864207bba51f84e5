"""Which test files need torch, read from their imports: `make unit` runs the others, with torch out of reach."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "compressai", "torchvision"}


@functools.cache
def needs_torch(test_file: Path) -> bool:
    """Whether importing the file or a conftest of its folder imports torch.

    Imports of imports count. Imports inside functions do not: a test that reaches one is marked `torch` by hand.
    """
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
    """Every module that importing the file imports; `from a import b` may name the module a.b."""
    found = set()
    for node in _executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no bodies of functions, nothing under `if TYPE_CHECKING`."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    skipped = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from _executed(child)
