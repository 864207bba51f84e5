"""--qat: what is learnt, what the checkpoint holds, and that a resumed run is the same."""

from pathlib import Path

import pytest
import torch

from relic.codec.checkpoint import load_checkpoint
from tests.train.runs import Killed, Run, assert_equal, lines, stop_after, weights

RELUS = ["g_a.1", "g_a.3", "g_a.5", "g_s.1", "g_s.3", "g_s.5"]
EACH = ("--qat", "true", "--log_every", "1", "--save_every_steps", "1")


def steps(folder: Path, name: str = "last.pt") -> dict[str, float]:
    quantization = load_checkpoint(folder / "checkpoints" / name).quantization
    assert quantization is not None
    found: dict[str, float] = quantization["activation_steps"]
    return found


def test_a_killed_run_goes_on_with_the_same_bits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*EACH, folder=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            run(*EACH, folder=tmp_path / "cut")
    assert run(*EACH, "--resume", "auto", folder=tmp_path / "cut") == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert steps(tmp_path / "whole") == steps(tmp_path / "cut")
    assert [line["loss"] for line in lines(tmp_path / "cut", "train")] == [
        line["loss"] for line in lines(tmp_path / "whole", "train")
    ]


def test_steps_are_measured_then_learnt_then_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps, the last 2 of them with frozen steps."""
    flags = (*EACH, "--epochs", "10", "--batch_size", "6")
    assert run(*flags, folder=tmp_path / "whole") == 0
    found = {}
    for stop in (1, 17, 18, 19):
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Killed):
                run(*flags, folder=tmp_path / str(stop))
        found[stop] = steps(tmp_path / str(stop))
    start, end = steps(tmp_path / "1", "best_loss.pt"), steps(tmp_path / "whole")
    assert list(end) == RELUS
    assert all(start[name] != found[17][name] != found[18][name] for name in RELUS)
    assert found[18] == found[19] == end


def test_the_weights_are_those_of_other_roundings(run: Run, tmp_path: Path) -> None:
    assert run(*EACH, folder=tmp_path / "qat") == 0
    assert run(*EACH[2:], folder=tmp_path / "float") == 0
    first, other = (lines(tmp_path / name, "train")[0]["loss"] for name in ("qat", "float"))
    assert first != other and first == pytest.approx(other, rel=0.05)
    assert load_checkpoint(tmp_path / "float" / "checkpoints" / "last.pt").quantization is None


def test_parts_with_gdn_have_no_steps(run: Run, tmp_path: Path) -> None:
    assert run(*EACH, "--replace_parts", "encoder", folder=tmp_path) == 0
    assert list(steps(tmp_path)) == RELUS[:3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"upsample": "deconv5"}, "does not hold"),
        ({"upsample": "cubic", "activation_steps": {}}, "upsample"),
        ({"upsample": "deconv5", "activation_steps": {"g_a.2": 1.0}}, "no dict of ReLUs"),
        ({"upsample": "deconv5", "activation_steps": {"g_a.1": 0.0}}, "the step of g_a.1"),
        ({"upsample": "deconv5", "activation_steps": {"g_a.1": torch.ones(1)}}, "the step of g_a.1"),
    ],
)
def test_a_checkpoint_with_odd_steps_is_refused(wrong: object, message: str, run: Run, tmp_path: Path) -> None:
    assert run("--epochs", "0", folder=tmp_path) == 0
    path = tmp_path / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "quantization": wrong}, path)
    with pytest.raises(Exception, match=message):
        load_checkpoint(path)
