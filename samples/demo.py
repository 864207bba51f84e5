"""The whole job on sample photographs, with the commands a user would type: `make demo`."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m samples.demo`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.cli import command, parse
from relic.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
_NAMES = ("GDN", "swapped, not yet trained", "swapped and fine-tuned")


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Build photographs, pack them, swap the embedded codec's GDN for ReLU, fine-tune, evaluate and export it."""

    out: Path = ROOT / "demo"
    """Folder of everything the demo makes; what an earlier demo left there is removed."""
    epochs: int = 12
    """Passes over the 480 crops."""
    train: int = 120
    """Photographs to train on."""


@command("samples/demo.py")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after the other; stop at the first that fails."""
    config = parse(DemoConfig, argv, prog="samples/demo.py")
    out, began = config.out, time.perf_counter()
    _clear(out)
    swap = f"--shards {out}/shards --pretrained embedded --replace_parts all --loss_type rd --recon_dir {out}/recon"
    tuned, stream = out / "tuned" / "best_loss.pt", out / "000.relic"
    stages = {
        "photographs": f"samples/build.py --out {out}/coco --train {config.train}",
        "shards": f"prep/make_shards.py --coco_dir {out}/coco --out_dir {out}/shards --crop random --crops_per_image 4",
        "swap, without training": f"train/main.py {swap} --epochs 0 --recon_every 0 --save_dir {out}/swapped",
        "fine-tuning": f"train/main.py {swap} --epochs {config.epochs} --lr 1e-3 --save_dir {out}/tuned",
        "evaluation": f"evaluate/run.py --checkpoint embedded {out}/swapped/last.pt {tuned} --shards {out}/shards "
        f"--out {out}/eval",
        "export": f"export/onnx_parts.py --ckpt {tuned} --part all --out {out}/onnx",
        "encoding without torch": f"export/codec.py encode {out}/eval/origin/000.png {stream} --export {out}/onnx",
        "decoding without torch": f"export/codec.py decode {stream} {out}/000.png --export {out}/onnx",
    }
    for number, (title, arguments) in enumerate(stages.items(), 1):
        print(f"\n[{number}/{len(stages)}] {title}\n$ python {arguments}".replace(f"{ROOT}/", ""), flush=True)
        if subprocess.run([sys.executable, *shlex.split(arguments)], cwd=ROOT, check=False).returncode:
            raise InputError(f"{title} failed; the lines above say why")
    summary = json.loads((out / "eval" / "metrics.json").read_text())["summary"]
    _compare(out / "eval", [codec["label"] for codec in summary], out / "comparison.png")
    print(_table(summary))
    print(_places(out, tuned))
    print(f"done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


def _clear(out: Path) -> None:
    """Remove an earlier demo, but never a folder that is something else."""
    if out.exists() and any(out.iterdir()) and not (out / "coco" / "samples.json").exists():
        raise InputError(f"--out {out}: holds something other than a demo; choose a new folder")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _table(summary: list[dict[str, float]]) -> str:
    lines = [f"\n{'':26}{'PSNR dB':>9}{'MS-SSIM':>9}{'bpp estimated':>15}{'bpp real':>10}"]
    for name, codec in zip(_NAMES, summary, strict=True):
        lines.append(
            f"{name:26}{codec['psnr_db']:9.2f}{codec['ms_ssim']:9.4f}{codec['bpp_estimated']:15.3f}{codec['bpp_real']:10.3f}"
        )
    return "\n".join(lines)


def _compare(folder: Path, labels: list[str], target: Path, images: int = 3) -> None:
    """A row an image: original, GDN, swapped, fine-tuned."""
    from PIL import Image

    columns = ["origin", *labels]
    side = 224
    sheet = Image.new("RGB", (side * len(columns), side * images))
    for row in range(images):
        for column, label in enumerate(columns):
            with Image.open(folder / label / f"{row * 4:03d}.png") as picture:
                sheet.paste(picture, (column * side, row * side))
    sheet.save(target)


def _places(out: Path, tuned: Path) -> str:
    return f"""
to look at:
  {out / "comparison.png"}   original | GDN | swapped, not yet trained | fine-tuned
  {out / "eval"}   metrics.json, per_image.csv, reconstructions
  {tuned}   the fine-tuned codec
  {out / "onnx"}   encoder.onnx, decoder.onnx, full.onnx, tables.npz, export.json
  {out / "000.relic"}   an image as a bitstream, encoded and decoded without torch
"""


if __name__ == "__main__":
    sys.exit(main())
