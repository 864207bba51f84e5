"""No two types, type aliases or public functions of the project have one name, but the ones that play one role."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("relic", "prep", "train", "evaluate", "export", "toolchains", "samples", "benchmarks", "studies")
ONE_ROLE = {
    "main",  # of every command
    "make_plan",  # of every stage
    "compile_and_run",  # of every vendor's script
    "Floats",  # toolchains/ runs without relic
}


def names_of(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                found.add(name)
    return {name for name in found if not name.startswith("_")}


def test_a_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for name in names_of(path) - ONE_ROLE:
                places[name].append(str(path.relative_to(ROOT)))
    assert len(places) > 500
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
