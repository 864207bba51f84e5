"""Reads past the page cache: a tiny run of --cold, its references, and the memory it is given."""

import json
import mmap
import os
import stat
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks._loader import cold, fio, memory, storage
from benchmarks._loader.config import LoaderBenchmarkConfig
from benchmarks._loader.fio import Fio, find_fio
from benchmarks._loader.page_cache import cached_share, drop_from_cache
from benchmarks._loader.peers import Peer
from benchmarks._loader.planning import make_plan
from benchmarks._loader.storage import StorageReader
from benchmarks.loader import main
from relic.errors import InputError
from relic.loader.loader import LoaderTimes
from relic.shards.shard_set import open_shard_set
from tests.conftest import write_shards

FAKE_FIO = """#!{python}
import json, sys
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
with open({log!r}, "a") as log:
    log.write(json.dumps(flags) + "\\n")
if flags["ioengine"] in {refused!r}:
    sys.exit("fio: engine " + flags["ioengine"] + " not available")
reads = int(flags["number_ios"]) * int(flags["numjobs"])
print("fio: a note before the figures")
print(json.dumps({{"jobs": [{{"usr_cpu": 5.0, "sys_cpu": 15.0, "read": {{"total_ios": reads, "iops": 8000.0}}}}]}}))
"""


def program(path: Path, text: str) -> None:
    """A script that can be run by its name in the folder."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def no_fio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def fake_fio(folder: Path, monkeypatch: pytest.MonkeyPatch, refused: list[str]) -> Path:
    """Put a fio first in PATH that refuses some engines. Returns the file with the flags of its runs."""
    folder.mkdir(exist_ok=True)
    program(folder / "fio", FAKE_FIO.format(python=sys.executable, log=str(folder / "log"), refused=refused))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder / "log"


@pytest.mark.commands
@pytest.mark.parametrize("with_fio", [True, False])
def test_a_tiny_cold_run(
    with_fio: bool, tmp_path: Path, no_fio: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if with_fio:
        fake_fio(tmp_path / "bin", monkeypatch, [])
        monkeypatch.setattr(cold, "memory_limit", lambda: 1 << 40)
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    flags = {"images": tmp_path / "images", "work_dir": tmp_path / "work", "crops": 24, "batch_size": 8, "epochs": 2,
             "consumer_ms": 1, "json": tmp_path / "cold.json", "markdown": tmp_path / "cold.md"}  # fmt: skip
    assert main(["--cold", *(text for name, value in flags.items() for text in (f"--{name}", str(value)))]) == 0
    found = json.loads((tmp_path / "cold.json").read_text())
    references = {"direct_raw", "direct_jpg"} | ({"fio_raw", "fio_jpg"} if with_fio else set())
    loaders = {"relic_raw", "relic_jpg", "relic_raw_direct", "webdataset_npy", "webdataset_jpg"}
    later = {"relic_raw_later"} if with_fio else set()  # only where memory is limited
    assert set(found["rates"]) == references | loaders | later | {"torch_folder"}
    assert all(rate > 0 and found["by_epoch"][name][1] == rate for name, rate in found["rates"].items())
    assert all(found["cpu_us"][name] > 0 for name in loaders)
    reference = "fio" if with_fio else "direct"
    assert found["engine"] == ("io_uring" if with_fio else "")
    for name, suffix in (
        ("relic_raw", "raw"),
        ("relic_raw_direct", "raw"),
        ("webdataset_npy", "raw"),
        ("relic_jpg", "jpg"),
    ):
        expected = found["rates"][name] / found["rates"][f"{reference}_{suffix}"]
        assert found["ratios"][f"{name}/{reference}_{suffix}"] == pytest.approx(expected)
    if with_fio:
        assert found["rates"]["fio_raw"] == 8000 and found["cpu_us"]["fio_raw"] == pytest.approx(25)
    assert found["block_bytes"]["raw"] == 38 * 4096
    assert set(found["consumers"]) == {"", "direct"}
    for consumer in found["consumers"].values():
        assert 0 <= consumer["wait"] < 1 and consumer["asked_images_per_second"] == 8000
        assert consumer["peak_mib"] >= consumer["before_mib"] > 0 and consumer["ring_mib"] > 80
    table = (tmp_path / "cold.md").read_text()
    assert table in capsys.readouterr().out
    assert ("- fio used io_uring." in table) == with_fio
    told = "fio" if with_fio else "bare reads"
    share = 8000 / found["rates"][f"{reference}_raw"]
    assert f"relative to {told}" in table
    assert f"asks for 8,000 images/s, {share:.2f} of {told}, and waits" in table


@pytest.mark.commands
def test_the_first_engine_that_works_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_fio(tmp_path / "bin", monkeypatch, ["io_uring", "libaio"])
    names = [tmp_path / "a:b.tar", tmp_path / "c.tar"]
    found = find_fio(names, 155_648)
    assert found is not None and found.engine == "psync"
    made = found.read(names, 155_648, 64)
    assert made.images == 64 and made.images_per_second == 8000
    runs = [json.loads(line) for line in log.read_text().splitlines()]
    assert [run["ioengine"] for run in runs] == ["io_uring", "libaio", "psync", "psync"]
    assert (runs[-1]["numjobs"], runs[-1]["iodepth"], runs[-1]["number_ios"]) == ("32", "1", "2")
    assert (runs[0]["numjobs"], runs[0]["iodepth"], runs[0]["direct"], runs[0]["bs"]) == ("1", "32", "1", "155648")
    assert runs[0]["filename"] == f"{tmp_path}/a\\:b.tar:{tmp_path}/c.tar"
    fake_fio(tmp_path / "bin", monkeypatch, ["io_uring", "libaio", "psync"])
    assert find_fio(names, 4096) is None


def test_without_fio_none_is_found(tmp_path: Path, no_fio: None) -> None:
    assert find_fio([tmp_path / "a.tar"], 4096) is None


@pytest.mark.parametrize("direct", [True, False])
def test_the_storage_reader_reads_whole_samples(direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, counts=(5, 40), side=64, encoding="jpg")
    if not direct:
        monkeypatch.setattr(storage, "direct_unit", lambda path: None)
    shards = open_shard_set(tmp_path, "train")
    expected = []
    for tar in shards.tars:
        with tarfile.open(tar) as archive:
            files = ((archive.extractfile(entry), entry.name) for entry in archive if entry.name.endswith(".jpg"))
            expected += [file.read() for file, _ in files if file is not None]
    with ExitStack() as stack:
        reader = StorageReader(shards, stack)
        assert direct or not reader.direct
        assert reader.payloads(range(45)) == expected
        read = [size for some in reader.epoch(1) for size in some]
        assert len(read) == 45 and all(size >= len(min(expected, key=len)) for size in read)
        assert next(reader.epoch(2))  # an epoch may be left early
    assert reader.block_bytes % 4096 == 0


def test_dropped_files_are_not_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * mmap.PAGESIZE))
    assert cached_share([path]) == 1
    drop_from_cache([path])
    if cached_share([path]) == 1:
        pytest.skip("a file system in memory")
    assert cached_share([path]) == 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(file.fileno(), mmap.PAGESIZE, 0)
    assert cached_share([path]) == pytest.approx(1 / 64)


def test_where_files_may_not_be_written_the_share_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert cached_share([tmp_path / "file"]) is None


def a_group(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, files: dict[str, str]) -> None:
    """Let `memory` see a process in a group whose folders hold `files`."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(f"1:cpu:/else\n{line}\n")
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    monkeypatch.setattr(memory, "_PROC", folder / "proc")
    monkeypatch.setattr(memory, "_GROUPS", folder / "groups")


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/a/b", {"a/memory.max": "500000\n", "a/b/memory.max": "max\n"}, 500_000),
        ("0::/a/b", {"a/b/memory.max": "max\n"}, None),
        ("0::/outside", {"memory.max": "400000\n"}, 400_000),  # a container sees its own group at the root
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "300000\n"}, 300_000),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_the_limit_is_the_smallest_of_the_groups(
    line: str, files: dict[str, str], limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_group(tmp_path, monkeypatch, line, files)
    assert memory.memory_limit() == limit


def test_systemd_limits_the_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_group(tmp_path, monkeypatch, "0::/", {"memory.max": "max"})
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    text = f'#!/bin/sh\necho "$RELIC_BENCHMARK_LIMITED: $*" >> {log}\ncase "$*" in *" true") exit 0;; esac\nexit 7\n'
    program(tmp_path / "bin" / "systemd-run", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(memory, "_SYSTEMD", tmp_path)
    assert main(["--cold", "--crops", "60000"]) == 7
    _, call = log.read_text().splitlines()
    assert call.startswith("1: ") and call.endswith("loader.py --cold --crops 60000")
    assert f" --property MemoryMax={60_000 * 224 * 224 * 3 // 3} --property MemorySwapMax=0 -- " in call
    config = LoaderBenchmarkConfig(cold=True)
    assert make_plan(config).limiting_command[-1] == "--" and not make_plan(config, may_limit=False).limiting_command
    assert not make_plan(LoaderBenchmarkConfig()).limiting_command
    (tmp_path / "groups" / "memory.max").write_text(str(1 << 30))  # a container that is small enough
    assert not make_plan(config).limiting_command


def test_without_systemd_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SYSTEMD", tmp_path / "none")
    assert memory.limiting_command(1 << 30) is None


def test_a_reset_peak_is_the_present_memory() -> None:
    block = np.ones(64 << 20, np.uint8)
    del block
    before = memory.peak_mib()
    memory.forget_peak()
    assert memory.resident_mib() <= memory.peak_mib() + 1
    assert memory.peak_mib() <= before


@pytest.mark.commands
def test_a_fio_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "fio", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(fio, "_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"fio took more than 0\.5 s for 64 reads; try fewer --crops"):
        Fio(str(tmp_path / "fio"), "psync").read([tmp_path / "a"], 4096, 64)


def test_fio_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_fio(tmp_path / "bin", monkeypatch, ["psync"])
    with pytest.raises(InputError, match=r"fio \(psync\) failed: fio: engine psync not available"):
        Fio("fio", "psync").read([tmp_path / "a"], 4096, 64)


def test_turns_are_short_but_the_first_of_relics_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six batches of 8: whole epochs would take a loader of files minutes."""
    monkeypatch.setattr(cold, "_TURN", 24)
    other = Peer("other", lambda _: [range(8)] * 6)
    ours = other._replace(times=LoaderTimes())
    for peer, images in ((ours, [48, 24, 24]), (other, [24, 24, 24])):
        run = cold._cold(peer, [], [])
        assert [run(number).images for number in range(3)] == images
    monkeypatch.setattr(cold, "_TURN_SECONDS", -1)
    assert [cold._cold(ours, [], [])(number).images for number in range(2)] == [48, 8]
