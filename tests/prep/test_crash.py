"""Runs of the real command that are killed, stopped or out of disk space, from another working directory."""

import contextlib
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(ROOT / "prep" / "make_shards.py"))


def arguments(coco: Path, out: Path, workers: int = 2) -> list[str]:
    flags = ("--size", "96", "--samples_per_shard", "3", "--workers", str(workers), "--max_bad", "0.1")
    return [*COMMAND, "--coco_dir", str(coco), "--out_dir", str(out), *flags]


def start(coco: Path, out: Path, workers: int = 2, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        arguments(coco, out, workers), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(coco: Path, out: Path, workers: int = 2) -> None:
    done = subprocess.run(arguments(coco, out, workers), cwd="/", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE
        ]
    return []


@pytest.fixture(scope="module")
def big_coco(
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Images for a second or two of work, even with pillow-simd, and one bad image."""
    coco: Path = tmp_path_factory.mktemp("coco")
    for split, count, distinct in (("train2017", 300, 30), ("val2017", 4, 4)):
        (coco / split).mkdir()
        for number in range(count):
            path = coco / split / f"{number:012d}.jpg"
            if number < distinct:
                Image.fromarray(make_photograph(480, 360, number)).save(path, quality=92)
            else:
                path.write_bytes((coco / split / f"{number % distinct:012d}.jpg").read_bytes())
    (coco / "train2017" / "000000000007.jpg").write_bytes(b"bad")
    return coco


@pytest.fixture(scope="module")
def whole(big_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of every file of a run with one worker that was not interrupted."""
    out: Path = tmp_path_factory.mktemp("whole")
    finish(big_coco, out, workers=1)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def kill_and_rerun(coco: Path, out: Path, seconds: float, workers: int) -> None:
    process = start(coco, out, workers)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    finish(coco, out, workers)


@pytest.mark.commands
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(
    big_coco: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]], whole: dict[str, str]
) -> None:
    rng = random.Random(time.time_ns())
    for attempt, workers in enumerate((2, 3)):
        seconds = rng.uniform(0.6, 1.8)
        kill_and_rerun(big_coco, tmp_path / str(attempt), seconds, workers)
        assert digests(tmp_path / str(attempt)) == whole, f"killed after {seconds} s"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_twenty_moments(
    big_coco: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]], whole: dict[str, str]
) -> None:
    rng = random.Random(time.time_ns())
    for attempt in range(20):
        seconds = rng.uniform(0.4, 2.5)
        kill_and_rerun(big_coco, tmp_path / str(attempt), seconds, 1 + attempt % 3)
        assert digests(tmp_path / str(attempt)) == whole, f"killed after {seconds} s"


@pytest.mark.commands
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_at_once_and_leaves_a_folder_to_go_on_with(
    big_coco: Path,
    tmp_path: Path,
    digests: Callable[[Path], dict[str, str]],
    whole: dict[str, str],
    number: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "out"

    process = start(big_coco, out, start_new_session=True)
    wait_for(lambda: list(out.glob("train-*.tar")))
    workers = workers_of(process)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: the workers also receive it
    _, error = process.communicate(timeout=10)
    assert process.returncode == code
    assert "Traceback" not in error
    assert not any(worker.is_running() for worker in workers)
    assert not (out / "train.json").exists()
    assert not list(out.glob("*.tmp"))
    finish(big_coco, out)
    assert digests(out) == whole


@pytest.mark.commands
def test_a_killed_worker_is_replaced(
    big_coco: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]], whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    process = start(big_coco, out)
    wait_for(lambda: list(out.glob("train-*.tar")))
    wait_for(lambda: workers_of(process))
    workers_of(process)[0].kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert digests(out) == whole


@pytest.mark.commands
def test_workers_that_keep_dying_fail_the_run_and_name_the_image(big_coco: Path, tmp_path: Path) -> None:
    process = start(big_coco, tmp_path / "out")
    deadline = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < deadline
        for worker in workers_of(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 1
    assert "died twice" in error
    assert "SIGKILL" in error
    assert ".jpg" in error
    assert "Traceback" not in error


@pytest.mark.commands
def test_a_full_disk_ends_cleanly_and_can_be_gone_on_from(
    big_coco: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]], whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    limit = 3 * 96 * 96 * 2  # bytes per file: two of three crops

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(big_coco, out, preexec_fn=small_files)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "error:" in error
    assert "too large" in error
    assert "Traceback" not in error
    assert not list(out.glob("*.tmp"))
    assert not list(out.glob("*.tar"))
    finish(big_coco, out)
    assert digests(out) == whole


@pytest.mark.commands
def test_prep_never_imports_torch_and_ray_only_for_a_cluster() -> None:
    names = {path.stem for path in (ROOT / "prep").glob("*.py")} - {"__init__", "cluster"}
    modules = " ".join(f"prep.{name}" for name in sorted(names))
    code = (
        f"import sys\nfor name in '{modules}'.split(): __import__(name)\nprint({{'torch', 'ray'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.commands
@pytest.mark.parametrize("name", ["make_shards", "verify_shards"])
def test_help_loads_no_image_library(name: str) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "prep" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"torch", "compressai", "PIL", "simplejpeg"}
    assert ("--coco_dir" if name == "make_shards" else "--shards") in done.stdout
