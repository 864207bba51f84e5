"""A tiny run of the benchmark of remote sets: tests the form of its results, not the speed."""

import json
from pathlib import Path

import pytest

from benchmarks._remote.server import serving
from benchmarks.remote import main
from relic.storage.objects import read_range


@pytest.mark.commands
@pytest.mark.timeout(120)
def test_every_figure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"shards": 3, "samples": 4, "batch_size": 4, "large_shards": 2, "large_samples": 64, "latency_ms": 1}
    flags |= {"link_mb": 400, "rounds": 1}
    words = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    assert main([*words, "--json", str(tmp_path / "remote.json"), "--work_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "remote.json").read_text())
    assert found.pop("machine")["cores"] >= 1
    assert found.pop("settings").items() >= flags.items()
    assert 0 <= found.pop("wait_share") < 1
    assert len(found) == 10 and all(value > 0 for value in found.values())
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_the_server_sends_parts_of_files(tmp_path: Path) -> None:
    data = bytes(range(256)) * 600
    (tmp_path / "a.tar").write_bytes(data)
    with serving(tmp_path, mb_per_second=100, latency_ms=1) as url:
        assert bytes(read_range(f"{url}/a.tar", 1000, 150_000)) == data[1000:151_000]
