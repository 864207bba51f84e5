import subprocess
import sys
from pathlib import Path

import pytest

from evaluate.config import GONE, EvaluateConfig
from evaluate.plan import make_plan, unique_labels
from relic.cli import parse
from tests.conftest import refusal


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Command lines are checked before the file is read."""
    path = tmp_path / "codec.pt"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--images {folder}", "missing --checkpoint or --onnx"),
        ("--checkpoint {folder}/nope.pt --images {folder}", "nope.pt: no such file"),
        ("--checkpoint {checkpoint}", "--shards, --images: give one of the two, neither is given"),
        ("--checkpoint {checkpoint} --shards {shards} --images {folder}", "give one of the two, both are given"),
        ("--checkpoint {checkpoint} --images {folder}/nope", "--images {folder}/nope: no such folder"),
        ("--checkpoint {checkpoint} --images {empty}", "--images {empty}: no image in it"),
        ("--checkpoint {checkpoint} --shards {empty}", "--shards {empty}: no val.json here"),
        ("--checkpoint {checkpoint} --shards {shards} --split train", "--shards {shards}: no train.json here"),
        ("--checkpoint {checkpoint} --shards {shards} --split test", "--split test: choose from val, train"),
        ("--checkpoint {checkpoint} embedded {checkpoint} --images {folder}", "{checkpoint}: given twice"),
        ("--checkpoint {checkpoint} --images {folder} --recon_count -1", "--recon_count -1: must be 0 or more"),
        ("--checkpoint {checkpoint} --images {folder} --strict --bitstream false", "--strict: "),
        ("--checkpoint {checkpoint} --images {folder} --rdoq_lmbda 0.01", "--rdoq_lmbda: needs --rdoq"),
        ("--checkpoint {checkpoint} --images {folder} --rdoq full --rdoq_lmbda 0", "--rdoq_lmbda 0.0: must be more"),
        ("--checkpoint {checkpoint} --images {folder} --rdoq best", "--rdoq best: choose from off, fast, full"),
        (
            "--checkpoint {checkpoint} --images {folder} --out {checkpoint}",
            "--out {checkpoint}: {checkpoint} is not a folder",
        ),
        ("--checkpoint {checkpoint} --images {folder} --out {folder}/more", "is inside --images"),
        ("--checkpoint {checkpoint} --shards {shards} --io_threads -1", "--io_threads -1: must be 0 or more"),
        (
            "--checkpoint {checkpoint} --shards {shards} --cache_gb 1",
            "--cache_gb 1: goes with shards at URLs; --shards {shards} is read where it is",
        ),
        ("--checkpoint {checkpoint} --shards {shards} --direct no", "--direct no: choose from auto, on, off"),
        ("--checkpoint {checkpoint} --images {folder} --workers -1", "--workers -1: must be 0 or more"),
        ("--onnx {empty} --images {folder}", "--onnx {empty}: holds no encoder.onnx"),
        ("--onnx {folder}/nope --images {folder}", "--onnx {folder}/nope: holds no encoder.onnx"),
        ("--checkpoint {checkpoint} --images {folder} --curve a b", "--curve: 2 names for 1 codecs"),
        ("--checkpoint {checkpoint} --images {folder} --references 3", "--references 3: choose from auto, true, false"),
        ("--checkpoint {checkpoint} --images {folder} --published", "24 images, {folder} has 4"),
        ("--checkpoint {checkpoint} --shards {shards} --published", "needs Kodak's 24 images; give these as --images"),
        ("--checkpoint {checkpoint} --coco_dir {folder}", "--coco_dir is gone: "),
        ("--checkpoint {checkpoint} --use_prepared true", "--use_prepared is gone: "),
        ("--checkpoint {checkpoint} --images {folder} --num_workers 4", "--num_workers is gone: "),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(
    words: str,
    said: str,
    checkpoint: Path,
    folder: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"checkpoint": checkpoint, "folder": folder, "shards": shards, "empty": tmp_path / "empty"}
    argv = [word.format(**places) for word in words.split()]
    error = refusal(lambda: make_plan(parse(EvaluateConfig, argv, prog="evaluate/run.py", gone=GONE)), capsys)
    assert said.format(**places) in error and "\n" not in error


@pytest.mark.commands
def test_it_is_answered_before_torch_is_imported() -> None:
    script = Path(__file__).parents[2] / "evaluate" / "run.py"
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--checkpoint', 'nope.pt', '--images', '.']\n"
        "try:\n"
        f"    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as exit_:\n"
        "    print(exit_.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr.count("\n")) == ("2 False", 1)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["/x/a.pt"], ["a"]),
        (["/x/last.pt", "/y/last.pt"], ["x-last", "y-last"]),
        (["/x/1/last.pt", "/y/1/last.pt", "/y/best.pt"], ["x-1-last", "y-1-last", "y-best"]),
        (["/x/a.pt", "/x/a.pth"], ["1-a", "2-a"]),
        (["/x/origin.pt"], ["x-origin"]),
    ],
)
def test_labels_are_unique(paths: list[str], labels: list[str]) -> None:
    assert unique_labels([Path(path) for path in paths]) == labels
