"""Run every stage on sample photographs, with the commands that a user would type: `make demo`."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: same import root as `python -m samples.demo`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import parse
from relic.columns import in_columns
from relic.errors import InputError, before_work, command
from relic.files import check_folder

ROOT = Path(__file__).resolve().parents[1]
_MARKER = ".relic-demo"
_MADE = (
    "coco",
    "shards",
    "naive",
    "swapped",
    "tuned",
    "recon",
    "eval",
    "onnx",
    "000.relic",
    "000.png",
    "comparison.png",
)
_TUNING = "--sched onecycle --optimizer soap --lr 2e-3"
_COMPARED = ("000", "004", "008")
"""Images of the comparison: names of files in OUT/eval, without ending."""
_NAMES = ("GDN", "swapped naively", "swapped, calibrated", "calibrated and fine-tuned")


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Build photographs, pack them, replace GDN by ReLU in the embedded codec, fine-tune, evaluate and export it."""

    out: Path = ROOT / "demo"
    """Folder for everything that the demo makes. The files of an earlier demo are removed."""
    epochs: int = 8
    """Passes over the crops. There are four crops per photograph."""
    train: int = 120
    """Number of photographs to train on. Calibration uses 64 of their crops."""

    def __post_init__(self) -> None:
        for flag, value, least in (("--epochs", self.epochs, 1), ("--train", self.train, 16)):
            if value < least:
                raise InputError(f"{flag} {value}: must be {least} or more")


@command("samples/demo.py")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after another. Stop at the first that fails."""
    config = parse(DemoConfig, argv, prog="samples/demo.py")
    out, began = config.out.resolve(), time.perf_counter()
    with before_work():
        check_folder("--out", config.out)
        _clear(out)
    swap = "--shards OUT/shards --pretrained embedded --replace_parts all --recon_dir OUT/recon"
    loss = "--loss_type rd --distortion mse --lambda_bpp 0.0023"  # the loss that the embedded codec was trained with
    stages = {
        "photographs": f"samples/build.py --out OUT/coco --train {config.train}",
        "shards": "prep/make_shards.py --coco_dir OUT/coco --out_dir OUT/shards --crop random --crops_per_image 4",
        "naive swap": f"train/main.py {swap} --swap_init naive --epochs 0 --recon_every 0 --save_dir OUT/naive",
        "calibrated swap": f"train/main.py {swap} --epochs 0 --recon_every 0 --save_dir OUT/swapped",
        "fine-tuning": f"train/main.py {swap} {loss} {_TUNING} --epochs {config.epochs} --save_dir OUT/tuned",
        "evaluation": "evaluate/run.py --shards OUT/shards --out OUT/eval "
        "--checkpoint embedded OUT/naive/last.pt OUT/swapped/last.pt OUT/tuned/best_loss.pt",
        "export": "export/onnx_parts.py --ckpt OUT/tuned/best_loss.pt --part all --out OUT/onnx",
        "encoding without torch": "export/codec.py encode OUT/eval/origin/000.png OUT/000.relic --export OUT/onnx",
        "decoding without torch": "export/codec.py decode OUT/000.relic OUT/000.png --export OUT/onnx",
    }
    for number, (title, arguments) in enumerate(stages.items(), 1):
        command_line = [sys.executable, *(word.replace("OUT", str(out)) for word in arguments.split())]
        shown = shlex.join(["python", *command_line[1:]]).replace(f"{ROOT}/", "")
        print(f"\n[{number}/{len(stages)}] {title}\n$ {shown}", flush=True)
        if subprocess.run(command_line, cwd=ROOT, check=False).returncode:
            raise InputError(f"{title} failed; the lines above say why")
    summary = json.loads((out / "eval" / "metrics.json").read_text())["summary"]
    _compare(out / "eval", summary, out / "comparison.png")
    print(_table(summary))
    print(_places(out))
    print(f"done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def _clear(out: Path) -> None:
    """Remove the files of an earlier demo. Raises InputError for a folder with other files, and removes nothing."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / _MARKER).exists():
        raise InputError(f"--out {out}: holds files that are not of a demo; choose a new folder")
    (out / _MARKER).touch()
    for name in _MADE:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)


def _table(summary: list[dict[str, Any]]) -> str:
    rows = [("", "PSNR dB", "MS-SSIM", "bpp estimated", "bpp real")]
    for name, codec in zip(_NAMES, summary, strict=True):
        psnr_db, ms_ssim, estimated, real = (codec[key] for key in ("psnr_db", "ms_ssim", "bpp_estimated", "bpp_real"))
        rows.append((name, f"{psnr_db:.2f}", f"{ms_ssim:.4f}", f"{estimated:.3f}", f"{real:.3f}"))
    return f"\n{in_columns(rows)}"


def _compare(folder: Path, summary: list[dict[str, Any]], target: Path) -> None:
    """Draw one row per image; the columns are original, GDN, swapped naively, calibrated and fine-tuned."""
    from samples.comparison import Column, draw_comparison

    columns = [Column(folder / "origin", "original")]
    for name, codec in zip(_NAMES, summary, strict=True):
        figures = f"mean {codec['psnr_db']:.2f} dB, {codec['bpp_real']:.3f} bpp"
        columns.append(Column(folder / codec["label"], name, figures))
    draw_comparison(columns, _COMPARED, target)


def _places(out: Path) -> str:
    return f"""
results:
  {out / "comparison.png"}   original | GDN | swapped naively | calibrated | fine-tuned
  {out / "eval" / "report.html"}   all of them side by side, with a divider; all numbers are in the same folder
  {out / "tuned" / "best_loss.pt"}   the fine-tuned codec
  {out / "onnx"}   encoder.onnx, decoder.onnx, full.onnx, tables.npz, export.json
  {out / "000.relic"}   an image as a bitstream, encoded and decoded without torch
"""


if __name__ == "__main__":
    sys.exit(main())
