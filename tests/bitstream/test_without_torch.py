"""The bitstream needs only numpy and starts quickly."""

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

CODE_ONE = """
import sys
{before}
import numpy as np
from relic.bitstream.coder import load_coder
from relic.bitstream.container import pack, unpack
from relic.bitstream.tables import Tables, quantize

tables = Tables(np.array([[0, 100, 60000, 65536]]), np.array([4]), np.array([0]), np.array([0.5], np.float32), 16)
symbols = quantize(np.arange(20, dtype=np.float32).reshape(1, 4, 5), tables)
assert (unpack(pack(symbols, 80, 60, tables), tables).symbols == symbols).all()
assert not {{{unwanted}}} & set(sys.modules)
sys.stdout.write(load_coder().name)
"""


@pytest.mark.commands
@pytest.mark.parametrize(
    ("before", "name"),
    [
        ("", None),
        ("sys.modules['compressai'] = None", "python"),
        ("import types; sys.modules['compressai'] = types.ModuleType('compressai')", "python"),
    ],
    ids=["as installed", "without compressai", "with something else of that name"],
)
def test_coding_imports_neither_torch_nor_compressai(before: str, name: str | None) -> None:
    done = run_code(before)
    assert done.returncode == 0, done.stderr
    assert name is None or done.stdout == name
    assert ("pip install" in done.stderr) == (done.stdout == "python")


@pytest.mark.commands
def test_a_compiled_coder_that_does_not_load_is_replaced(tmp_path: Path) -> None:
    package = tmp_path / "compressai"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / f"ans{EXTENSION_SUFFIXES[0]}").write_bytes(b"built for another machine")
    done = run_code(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert (done.returncode, done.stdout) == (0, "python"), done.stderr


def run_code(before: str) -> subprocess.CompletedProcess[str]:
    unwanted = "'torch', 'torchvision', 'scipy', 'PIL'" + ("" if before else ", 'compressai'")
    code = CODE_ONE.format(before=before, unwanted=unwanted)
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
