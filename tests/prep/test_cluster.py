"""The whole command on a Ray cluster of two nodes."""

import dataclasses
import hashlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prep.config import PrepConfig
from prep.images import LocalImages
from prep.planning import plan_splits
from relic.errors import InputError
from tests.storage.s3_server import S3Server

pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-cluster.txt")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
SECONDS_AFTER_THE_KILL = 60
Digests = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def coco(
    make_photograph: Callable[[int, int, int], NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """400 train images in 20 shards, one of them bad, and 3 of val."""
    folder: Path = tmp_path_factory.mktemp("coco")
    for split, count in (("train2017", 400), ("val2017", 3)):
        (folder / split).mkdir()
        for number in range(count):
            path = folder / split / f"{number:012d}.jpg"
            if number < 20:
                Image.fromarray(make_photograph(640, 480, number)).save(path, quality=92)
            else:
                path.write_bytes((folder / split / f"{number % 20:012d}.jpg").read_bytes())
    (folder / "train2017" / "000000000007.jpg").write_bytes(b"bad")
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, both on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else ray may write a token into the user's home
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def start(coco: Path, out: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "prep" / "make_shards.py"), "--coco_dir", str(coco), "--out_dir", str(out)]
    fixed = ("--samples_per_shard", "20", "--max_bad", "0.1", *flags)
    return subprocess.Popen([*command, *fixed], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_shards(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    while len(list(out.glob("train-*.done.json"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_a_node_that_is_killed_changes_no_byte(coco: Path, tmp_path: Path, cluster: Any, digests: Digests) -> None:
    local = start(coco, tmp_path / "local")
    _, error = local.communicate()
    assert local.returncode == 0, error
    out = tmp_path / "ray"
    process = start(coco, out, "--engine", "ray", "--ray_address", cluster.address)
    wait_for_shards(process, out, 4)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    killed = time.monotonic()
    assert not (out / "train.json").exists()
    on_ray, error = process.communicate(timeout=SECONDS_AFTER_THE_KILL)
    logging.info("ended %.1f s after a node was killed", time.monotonic() - killed)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert digests(out) == digests(tmp_path / "local")
    assert "399 crops of 399 images" in on_ray


def test_ctrl_c_sigterm_and_the_same_command_again(coco: Path, tmp_path: Path, cluster: Any, digests: Digests) -> None:
    out = tmp_path / "ray"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(coco, out, "--engine", "ray", "--ray_address", cluster.address)
        wait_for_shards(process, out, len(list(out.glob("train-*.done.json"))) + 2)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        assert "Traceback" not in error
        assert not list(out.glob("*.tmp"))
        assert not list(out.glob("*.owner"))
    process = start(coco, out, "--engine", "ray", "--ray_address", cluster.address)
    _, error = process.communicate()
    assert process.returncode == 0, error
    local = start(coco, tmp_path / "local")
    _, error = local.communicate()
    assert local.returncode == 0, error
    assert digests(out) == digests(tmp_path / "local")


def test_no_cluster_is_told_in_one_line(coco: Path, tmp_path: Path) -> None:
    for address in ("auto", "127.0.0.1:1"):
        process = start(coco, tmp_path / "out", "--engine", "ray", "--ray_address", address)
        _, error = process.communicate()
        assert process.returncode == 1
        assert error.count("\n") == 1, error
        assert f"--ray_address {address}: no Ray cluster answers" in error


@pytest.mark.parametrize("fault", ["libraries", "images", "out_dir"])
def test_a_node_that_would_pack_otherwise_is_named(coco: Path, tmp_path: Path, fault: str) -> None:
    from prep.cluster import _checked

    plan = plan_splits(PrepConfig(coco, tmp_path, include_val=False))[0]
    task = plan.tasks[0]
    assert _checked((lambda task, report: 5, task), lambda item: None) == 5
    changed: dict[str, Any] = {"images": LocalImages(tmp_path / "absent"), "out_dir": tmp_path / "absent"}
    packing = dataclasses.replace(task.packing, libraries={**task.packing.libraries, "simplejpeg": "0.1"})
    sick = dataclasses.replace(task, **{"packing": packing} if fault == "libraries" else {fault: changed[fault]})
    message = "has simplejpeg .*, not 0.1; install" if fault == "libraries" else "has no folder .*absent; mount it"
    with pytest.raises(InputError, match=f"^node .*: {message}"):
        _checked((lambda task, report: 5, sick), lambda item: None)


def test_images_and_shards_in_a_store(
    make_coco: Callable[..., Path], tmp_path: Path, s3: S3Server, cluster: Any, digests: Digests
) -> None:
    """The nodes get the keys from the environment in which they were started."""
    coco = make_coco(train=20, val=3)
    (coco / "train2017" / "000000000007.jpg").write_bytes(b"bad")
    for path in coco.rglob("*.jpg"):
        s3.objects[f"bucket/coco/{path.relative_to(coco)}"] = path.read_bytes()
    flags = ("--coco_dir", "s3://bucket/coco", "--size", "16", "--samples_per_shard", "3")
    local = start(coco, tmp_path / "local", *flags[2:])
    _, error = local.communicate()
    assert local.returncode == 0, error
    on_ray = ("--out_url", "s3://bucket/set", "--engine", "ray", "--ray_address", cluster.address)
    for packed in ("19 crops of 19 images", "already packed"):
        process = start(coco, tmp_path / "ray", *flags, *on_ray)
        said, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
        assert packed in said
        stored = {name: data for name, data in s3.objects.items() if name.startswith("bucket/set/")}
        found = {name.rpartition("/")[2]: hashlib.sha256(data).hexdigest() for name, data in stored.items()}
        assert found == digests(tmp_path / "local")
        assert not list((tmp_path / "ray").glob("*.tar*"))
