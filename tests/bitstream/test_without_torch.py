"""The bitstream needs numpy alone, and starts at once."""

import subprocess
import sys

import pytest

CODE_ONE = """
import sys
import time
started = time.perf_counter()
{before}
import numpy as np
from relic.bitstream.coder import load_coder
from relic.bitstream.container import pack, unpack
from relic.bitstream.tables import Tables, quantize

tables = Tables(np.array([[0, 100, 60000, 65536]]), np.array([4]), np.array([0]), np.array([0.5], np.float32), 16)
symbols = quantize(np.arange(20, dtype=np.float32).reshape(1, 4, 5), tables)
assert (unpack(pack(symbols, 80, 60, tables), tables).symbols == symbols).all()
seconds = time.perf_counter() - started
loaded = {{"torch", "compressai", "torchvision", "scipy", "PIL"}} & {{name for name in sys.modules if sys.modules[name]}}
assert not loaded, loaded
assert seconds < 1, seconds
sys.stdout.write(load_coder().name)
"""


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
    code = CODE_ONE.format(before=before).replace('"compressai", ', "" if before else '"compressai", ')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert name is None or done.stdout == name
    assert ("pip install" in done.stderr) == (done.stdout == "python")
