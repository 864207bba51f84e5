"""A tar has its name only when it is whole, whoever is killed when."""

import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.commands
@pytest.mark.timeout(120)
def test_every_tar_that_is_seen_while_a_worker_is_killed_is_whole(
    make_photograph: Callable[[int, int, int], NDArray[Any]], tmp_path: Path
) -> None:
    """One worker, near the end."""
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    for number in range(120):
        path = tmp_path / "coco" / "train2017" / f"{number:012d}.jpg"
        Image.fromarray(make_photograph(480, 360, number % 10)).save(path, quality=92)
    out = tmp_path / "out"
    flags = (
        f"--coco_dir {tmp_path}/coco --out_dir {out} --include_val false --size 96 --samples_per_shard 4 --workers 2"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "prep" / "make_shards.py"), *flags.split(), "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: dict[str, int] = {}
    killed = False
    while process.poll() is None:
        for tar in out.glob("*.tar"):
            if tar.name not in seen:
                seen[tar.name] = samples_in(tar)
        if not killed and len(seen) >= 20:
            workers = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
            for worker in workers[-1:]:
                worker.kill()
                killed = True
        time.sleep(0.001)
    assert process.returncode == 0, process.communicate()[1]
    process.communicate()
    assert killed
    assert len(seen) >= 20
    assert set(seen.values()) == {4}
    assert sum(map(samples_in, out.glob("*.tar"))) == 120


def samples_in(tar: Path) -> int:
    """Of a tar with its end mark. tarfile alone takes one that is cut between two members."""
    assert tar.read_bytes()[-1024:] == bytes(1024)
    with tarfile.open(tar) as archive:
        return len([archive.extractfile(member).read() for member in archive])  # type: ignore[union-attr]
