"""`--part I/N`: any number of parts, in any order and at once, give the files of a single run."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.config import PrepConfig
from prep.make_shards import main
from prep.part import PackingShare, part_of
from prep.split_folder import SplitFolder
from relic.errors import InputError
from tests.conftest import refusal

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--size", "16", "--samples_per_shard", "2", "--max_bad", "0.5", "--workers", "1")

Digests = Callable[[Path], dict[str, str]]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_each_shard_has_one_part(of: int) -> None:
    parts = [part_of(f"{number}/{of}") for number in range(of)]
    assert all([part.has(shard) for part in parts].count(True) == 1 for shard in range(20))
    assert all(one.goes_with(other) == (one != other) for one in parts for other in parts)
    assert not parts[0].goes_with(PackingShare(of, of + 1))


@pytest.mark.parametrize("text", ["", "1", "1/1", "8/8", "0/0", "-1/8", "1/-8", "a/b", "1/2/3", "0/9999999", "½/1"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(InputError, match=f"--part {text}: expected I/N with I from 0 to N-1"):
        part_of(text)


def test_contradictions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--part 3/3: expected" in refusal(lambda: PrepConfig(Path(), part="3/3"), capsys)
    assert "--part: not with --overwrite" in refusal(lambda: PrepConfig(Path(), part="0/3", overwrite=True), capsys)
    assert "needs --engine ray" in refusal(lambda: PrepConfig(Path(), ray_address="head:6379"), capsys)


def test_a_missing_ray_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(tmp_path, tmp_path / "out", "--engine", "ray") == 2
    assert capsys.readouterr().err == (
        "prep/make_shards.py: error: --engine ray: ray is not installed; pip install -r requirements-cluster.txt\n"
    )


def run(coco: Path, out: Path, *flags: str) -> int:
    return main(["--coco_dir", str(coco), "--out_dir", str(out), *FLAGS, *flags])


@pytest.fixture
def coco(make_coco: Callable[..., Path]) -> Path:
    """11 train images, one of them bad, and 3 of val: 6 and 2 shards."""
    folder = make_coco(train=11, val=3)
    (folder / "train2017" / "000000000004.jpg").write_bytes(b"bad")
    return folder


@pytest.fixture
def whole(coco: Path, tmp_path: Path, digests: Digests, tasks_here: None) -> dict[str, str]:
    """The files of a single run."""
    assert run(coco, tmp_path / "whole") == 0
    return digests(tmp_path / "whole")


@pytest.mark.commands
@pytest.mark.parametrize("of", [1, 2, 3, 10])
def test_any_order_gives_the_files_of_one_run(
    coco: Path, tmp_path: Path, digests: Digests, whole: dict[str, str], of: int, capsys: pytest.CaptureFixture[str]
) -> None:
    order = list(range(of))
    random.Random(of).shuffle(order)
    out = tmp_path / "out"
    for number in order:
        assert not (out / "val.json").exists() or of > 6
        assert run(coco, out, "--part", f"{number}/{of}") == 0
    said = capsys.readouterr().out
    assert "train: 10 crops of 10 images in 6 shards" in said
    if of == 2:
        assert f"train, part {order[0]}/2: {6 - order[0]} images, 3 shards packed; 3 shards missing" in said
    assert digests(out) == whole
    assert run(coco, out, "--part", f"{of - 1}/{of}") == 0  # a job that is started once more
    assert digests(out) == whole


@pytest.mark.commands
def test_files_that_were_lost_come_back(coco: Path, tmp_path: Path, digests: Digests, whole: dict[str, str]) -> None:
    out = tmp_path / "whole"
    for name in ("train-000000.tar", "train-000001.index"):
        (out / name).unlink()
    for number in (1, 0):
        assert run(coco, out, "--part", f"{number}/2") == 0
        assert (out / "train.json").exists() == (number == 0)
    assert digests(out) == whole


@pytest.mark.commands
@pytest.mark.parametrize("then", ["they appear", "they do not", "another part finishes"])
def test_records_that_are_seen_late_are_waited_for(
    coco: Path,
    tmp_path: Path,
    whole: dict[str, str],
    digests: Digests,
    then: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As NFS shows them: the name is in the listing of the folder, but the file cannot be opened yet."""
    out = tmp_path / "out"
    finished, asked = SplitFolder.finished_shard, []

    def find(self: SplitFolder, shard: int) -> object:
        asked.append(shard)
        if then == "another part finishes" and asked.count(1) > 5:  # which removes the records too
            shutil.copy(tmp_path / "whole" / "train.contact.png", out)
            shutil.copy(tmp_path / "whole" / "train.rejected.jsonl", out)
            shutil.copy(tmp_path / "whole" / "train.json", out)
        hidden = self.split == "train" and shard == 1 and not (then == "they appear" and asked.count(1) > 5)
        return None if hidden else finished(self, shard)

    assert run(coco, out, "--part", "1/2") == 0
    monkeypatch.setattr("prep.packing._LATE_SECONDS", 0.5)
    monkeypatch.setattr(SplitFolder, "finished_shard", find)
    assert run(coco, out, "--part", "0/2") == (then == "they do not")
    if then != "they do not":
        assert digests(out) == whole
    else:
        assert "train-000001.tar: it or its record was removed meanwhile" in capsys.readouterr().err
        assert not (out / "train.json").exists()


@pytest.mark.commands
def test_temporaries_of_other_parts_stay(coco: Path, tmp_path: Path, whole: dict[str, str], digests: Digests) -> None:
    """A part that begins may not remove what another part is writing on another host."""
    out = tmp_path / "out"
    out.mkdir()
    writing = [out / f"train-{shard:06d}.tar.{'a' * 16}.tmp" for shard in range(4)]
    writing.append(out / f"train.plan.json.{'b' * 16}.tmp")
    for path in writing:
        path.touch()
    assert run(coco, out, "--part", "0/2") == 0
    assert [path for path in writing if path.exists()] == [writing[1], writing[3], writing[4]]
    assert run(coco, out, "--part", "1/2") == 0
    assert digests(out) == whole


@pytest.mark.commands
def test_parts_of_other_flags_are_refused(
    coco: Path, tmp_path: Path, tasks_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(coco, tmp_path / "out", "--part", "0/2") == 0
    assert run(coco, tmp_path / "out", "--part", "1/2", "--size", "32") == 2
    error = capsys.readouterr().err
    assert "width: 16 -> 32" in error
    assert "; use another --out_dir, or delete the train files in this one\n" in error  # not by --overwrite


@pytest.mark.commands
def test_a_plan_of_a_living_part_is_not_replaced(
    coco: Path, tmp_path: Path, tasks_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before that part has finished its first shard."""
    from prep.owner import owning
    from prep.planning import plan_splits

    out = tmp_path / "out"
    out.mkdir()
    plans = plan_splits(PrepConfig(coco, out, size=32, samples_per_shard=2, part="0/2"))

    def begin(shared: bool) -> None:
        for plan in plans:
            plan.begin(shared=shared)

    with owning(out, PackingShare(0, 2), ["train", "val"], begin):
        before = (out / "train.plan.json").read_bytes()
        assert run(coco, out, "--part", "1/2") == 1
        assert "packed differently" in capsys.readouterr().err
        assert (out / "train.plan.json").read_bytes() == before
    assert run(coco, out, "--part", "1/2") == 0


@pytest.mark.commands
def test_too_many_bad_images_are_told_by_the_last_part(
    coco: Path,
    tmp_path: Path,
    tasks_here: None,
    capsys: pytest.CaptureFixture[str],
    whole: dict[str, str],
    digests: Digests,
) -> None:
    out = tmp_path / "out"
    assert run(coco, out, "--part", "1/2", "--max_bad", "0") == 0
    assert run(coco, out, "--part", "0/2", "--max_bad", "0") == 1
    assert "1 of 11 train images were rejected" in capsys.readouterr().err
    assert not (out / "train.json").exists()
    assert run(coco, out, "--part", "0/2") == 0
    assert run(coco, out, "--part", "1/2") == 0
    assert digests(out) == whole


@pytest.mark.commands
def test_the_job_array_of_the_page_packs_the_set(
    coco: Path, tmp_path: Path, whole: dict[str, str], digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script of docs/scale.md, as Slurm starts it, with other paths and the flags of these tests."""
    page = (ROOT / "docs" / "scale.md").read_text()
    found = re.search(r"^(    #!/bin/bash\n    #SBATCH --array=0-63\n(?:    .*\n)+)", page, re.MULTILINE)
    assert found
    out, flags = tmp_path / "out", " ".join(FLAGS)
    script = textwrap.dedent(found[1]).replace("/data/coco", str(coco)).replace("/data/shards", f"{out} {flags}")
    (tmp_path / "job.sh").write_text(script.replace("python ", f"{sys.executable} "))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for number in ("1", "0"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", number)
        subprocess.run(["bash", tmp_path / "job.sh"], cwd=ROOT, check=True)
    assert digests(out) == whole


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_parts_at_once_some_of_them_killed(
    make_coco: Callable[..., Path], tmp_path: Path, digests: Digests, tasks_here: None
) -> None:
    coco = make_coco(train=60, val=10, width=300, height=200)
    assert run(coco, tmp_path / "whole") == 0
    rng = random.Random(time.time_ns())
    out = tmp_path / "out"
    command: list[str | Path] = [
        sys.executable,
        ROOT / "prep/make_shards.py",
        "--coco_dir",
        coco,
        "--out_dir",
        out,
        *FLAGS,
    ]
    for attempt in range(4):
        begun = [
            subprocess.Popen([*command, "--part", f"{number}/4"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
            for number in rng.sample(range(4), 4)
        ]
        if attempt < 3:
            time.sleep(rng.uniform(0.5, 3))
            for process in rng.sample(begun, 2):
                process.send_signal(signal.SIGKILL)
        for process in begun:
            _, said = process.communicate(timeout=120)
            assert process.returncode in ((0, -9) if attempt < 3 else (0,)), said.decode()
    assert digests(out) == digests(tmp_path / "whole")
    assert json.loads((out / "train.json").read_text())["accepted"] == 60
