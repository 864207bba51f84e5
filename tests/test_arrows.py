"""The allowed imports between folders, checked against the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from relic import __version__

ROOT = Path(__file__).resolve().parents[1]
SHARED = {
    "relic.arrays",
    "relic.__version__",
    "relic.cache",
    "relic.errors",
    "relic.files",
    "relic.launch",
    "relic.lock",
    "relic.machine",
    "relic.options",
    "relic.signals",
}
STAGES = {"prep", "train", "evaluate", "export", "samples", "benchmarks", "studies"}
# Folder -> what it may import of this project, and which packages besides the standard library.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "relic/pictures": ({"relic.arrays", "relic.errors", "relic.pictures"}, {"isal", "numpy", "PIL", "simplejpeg"}),
    "relic/shards": (SHARED | {"relic.pictures.jpeg", "relic.shards"}, {"numpy", "xxhash"}),
    "relic/storage": (
        {"relic.cache", "relic.errors", "relic.files", "relic.lock", "relic.shards", "relic.storage"},
        {"braceexpand", "obstore"},
    ),
    "relic/bitstream": (SHARED | {"relic.bitstream"}, {"numpy"}),
    "relic/loader": (
        SHARED | {"relic.pictures", "relic.shards", "relic.loader"},
        {"torch", "numpy", "PIL", "xxhash"},
    ),
    "relic/codec": (
        SHARED | {"relic.bitstream", "relic.codec"},
        {"torch", "numpy", "bjontegaard", "compressai", "matplotlib", "pytorch_msssim"},
    ),
    "relic/swap": ({"relic.codec", "relic.options", "relic.swap"}, {"torch", "compressai"}),
    "relic/quantization": ({"relic.codec", "relic.quantization"}, {"compressai", "numpy", "torch"}),
    "relic/onnx": (SHARED | {"relic.bitstream", "relic.onnx"}, {"numpy", "onnxruntime"}),
    "relic": (SHARED | {"relic.plain_yaml"}, {"yaml", "torch", "numpy", "PIL", "platformdirs", "filelock", "tabulate"}),
    "prep": (
        SHARED | {"relic.pictures", "relic.shards", "relic.storage", "relic.cli", "relic.columns", "prep"},
        {"isal", "numpy", "PIL", "ray", "simplejpeg", "xxhash", "tqdm"},
    ),
    "train": (
        {"relic", "train"},
        {"torch", "numpy", "compressai", "PIL", "tqdm", "yaml", "wandb"},
    ),
    "evaluate": (
        {"relic", "evaluate"},
        {"torch", "numpy", "compressai", "PIL", "tqdm", "matplotlib", "jinja2", "markupsafe"},
    ),
    "export": (
        {"relic", "export"},
        {"torch", "numpy", "compressai", "PIL", "onnx", "onnxruntime", "flatbuffers"},
    ),
    # `job` is toolchains/job.py: the scripts there run in environments without relic.
    "toolchains": (
        set(),
        {"ai_edge_litert", "job", "numpy", "onnxruntime", "onnxruntime_qnn", "openvino", "rknn"},
    ),
    "samples": (
        {"relic.cli", "relic.columns", "relic.errors", "relic.files", "samples"},
        {"PIL"},
    ),
    "studies": (
        SHARED | {"relic.cli", "relic.codec", "relic.columns", "relic.pictures", "relic.shards", "studies"},
        {"compressai", "matplotlib", "jinja2", "torch", "yaml"},
    ),
}


def arrow_row(room: str) -> str:
    """The room's row in the table of docs/architecture.md."""
    ours, packages = ROOMS[room]
    shared = ["shared"] if ours >= SHARED else []
    paths = {name.replace(".", "/") for name in (ours - SHARED if shared else ours)} - {room}
    own = {f"`{path}`" if (ROOT / path).is_dir() else f"`{path}.py`" for path in paths}
    used = ", ".join(f"`{name}`" for name in sorted(packages))
    return f"| `{room}{'/*.py' if room == 'relic' else ''}` | {', '.join([*shared, *sorted(own)]) or '-'} | {used} |"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            found |= {f"relic.{alias.name}" for alias in node.names} if module == "relic" else {module}
    return found


def covered(name: str, allowed: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room: str) -> None:
    ours, packages = ROOMS[room]
    files = list((ROOT / room).glob("*.py") if room == "relic" else (ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            if top in STAGES | {"relic", "tests"}:
                assert covered(name, ours), f"{path.relative_to(ROOT)} imports {name}"
            elif top not in sys.stdlib_module_names:
                assert top in packages, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_all_that_its_row_names(room: str) -> None:
    ours, packages = ROOMS[room]
    files = (ROOT / room).glob("*.py") if room == "relic" else (ROOT / room).rglob("*.py")
    used = set().union(*(imports(path) for path in files))
    rows = (ours - SHARED if ours >= SHARED else ours) - {room.replace("/", "."), "relic"}
    assert not {row for row in rows if not any(covered(name, {row}) for name in used)}
    assert not packages - {name.split(".")[0] for name in used}


def test_the_table_in_the_docs_is_this_one() -> None:
    rows = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.count("|") == 4]
    assert rows[-len(ROOMS) :] == [arrow_row(room) for room in ROOMS]


def test_only_command_lines_touch_the_import_path() -> None:
    touching = {
        str(path.relative_to(ROOT))
        for room in (*STAGES, "relic")
        for path in (ROOT / room).rglob("*.py")
        if "sys.path" in path.read_text()
    }
    commands = {path for path in touching if "__main__" in (ROOT / path).read_text()}
    assert touching - commands <= {"relic/bitstream/coder.py"}  # it looks for CompressAI's compiled coder there


@pytest.mark.commands
@pytest.mark.parametrize(
    "module",
    [
        "prep.make_shards",
        "prep.verify_shards",
        "prep.upload_shards",
        "export.codec",
        "train.plan",
        "evaluate.plan",
        "export.plan",
        "evaluate.report_files",
        "export.devices.lint",
        "relic.codec.scores",
    ],
)
def test_what_must_not_wait_for_torch_does_not_import_it(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'compressai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_rooms_packages_are_empty() -> None:
    for room in (
        "relic/shards",
        "relic/bitstream",
        "relic/storage",
        "relic/loader",
        "relic/codec",
        "relic/swap",
        "relic/onnx",
        "relic/quantization",
    ):
        assert (ROOT / room / "__init__.py").read_text() == ""
    assert (ROOT / "relic" / "__init__.py").read_text() == f'__version__ = "{__version__}"\n'
