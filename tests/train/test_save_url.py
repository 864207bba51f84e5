"""--save_url: a run goes on, on another machine, from the copy in an object store."""

from pathlib import Path

import pytest

from tests.storage.s3_server import S3Server
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, weights

pytestmark = [pytest.mark.commands, pytest.mark.timeout(120)]


def test_another_machine_goes_on_from_the_copy(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--save_url", "s3://bucket/run", "--save_every_steps", "1")
    assert run("--save_every_steps", "1", folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 4)
        run(*url, folder=tmp_path / "first")
    assert run(*url, folder=tmp_path / "other") == 2  # neither --resume nor --overwrite
    assert "--save_url s3://bucket/run: holds a run; --resume auto continues it" in capsys.readouterr().err
    assert run("--save_url", "s3://other/run", folder=tmp_path / "other") == 2
    assert "--save_url s3://other/run/.writer.json: there is no such bucket (HTTP 404)\n" in capsys.readouterr().err
    assert run(*url, "--resume", "auto", folder=tmp_path / "second") == 0
    assert_equal(weights(tmp_path / "second"), weights(tmp_path / "whole"))
    assert [line["step"] for line in lines(tmp_path / "second", "train")] == [
        line["step"] for line in lines(tmp_path / "whole", "train")
    ]
    folder = tmp_path / "second" / "checkpoints"
    for name in ("last.pt", "best_msssim.pt", "best_loss.pt", "metrics.jsonl", "config.yaml"):
        assert s3.objects[f"bucket/run/{name}"] == (folder / name).read_bytes()
