"""Four GDN codecs made of the embedded one."""

import shlex
from pathlib import Path

import pytest
import torch

from relic.cli import parse
from relic.codec.constants import EMBEDDED
from relic.codec.entropy import medians_of
from relic.codec.pretrained import codec_path, read_codec
from studies import teachers
from studies.scaling import scaled
from studies.teachers import TEACHERS, WIDE, main
from studies.widening import widened
from tests.conftest import write_shards
from train.config import TrainConfig


@pytest.mark.parametrize("scale", [0.25, 1.4])
def test_scaled_latents_are_the_same_image_and_the_same_density(scale: float) -> None:
    embedded = read_codec(codec_path(EMBEDDED), flag="x").build().eval()
    model = scaled(scale).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = embedded.g_a(x)
        torch.testing.assert_close(model.g_a(x), scale * latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.g_s(scale * latents), embedded.g_s(latents), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(medians_of(model), scale * medians_of(embedded), rtol=1e-2, atol=2e-2)
        values = torch.linspace(-3, 3, 31).expand(latents.shape[1], 1, -1)
        found = model.entropy_bottleneck._logits_cumulative(scale * values, stop_gradient=True)
        expected = embedded.entropy_bottleneck._logits_cumulative(values, stop_gradient=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_new_channels_change_neither_the_images_nor_the_rate_before_they_are_trained() -> None:
    model = scaled(1).eval()
    wide = widened(model, (40, 64)).eval()
    assert wide.state_dict()["g_a.0.weight"].shape == (40, 3, 5, 5)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents, more = model.g_a(x), wide.g_a(x)
        torch.testing.assert_close(more[:, :48], latents)
        assert more[:, 48:].std() > 0  # so that they can learn
        torch.testing.assert_close(wide.g_s(more.round()), model.g_s(latents.round()))
        bits, of_more = (-torch.log2(m.entropy_bottleneck(y)[1]).sum() for m, y in ((model, latents), (wide, more)))
    torch.testing.assert_close(of_more, bits, rtol=1e-3, atol=0)


def test_a_new_channel_is_used_by_the_gradient() -> None:
    wide = widened(scaled(1), (40, 64)).train()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (wide(x)["x_hat"] - x).square().mean().backward()
    for layer, new in ((wide.g_s[0], slice(48, None)), (wide.g_s[2], slice(32, None))):
        assert layer.weight.grad is not None and layer.weight.grad[new].abs().max() > 0


def test_the_trainings_are_those_that_the_trainer_takes() -> None:
    for teacher in (*TEACHERS, *WIDE):
        arguments = teachers._TRAIN.format(**teacher._asdict())
        config = parse(TrainConfig, [*shlex.split(arguments), "--save_dir", "X"], prog="train/main.py")
        assert config.lambda_bpp == float(teacher.rate) and config.epochs == teacher.epochs


def test_what_is_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path / "shards", split, (16,), side=176)
    trained: list[str] = []

    def train(self: object, run: object) -> None:
        name = run.name  # type: ignore[attr-defined]
        trained.append(name)
        (tmp_path / "work" / name).mkdir()
        (tmp_path / "work" / name / "last.pt").write_bytes(name.encode())

    monkeypatch.setattr("studies.runs.Study.train", train)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher-0.0074.pt").write_bytes(b"kept")
    assert main([f"--{name}={tmp_path / name}" for name in ("shards", "out", "work")]) == 0
    assert trained == ["teacher-0.0235", "teacher-0.0023", "teacher-0.0008"]
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.pt")}
    assert found == {f"teacher-{each.rate}.pt": f"teacher-{each.rate}".encode() for each in TEACHERS} | {
        "teacher-0.0074.pt": b"kept"
    }


def test_missing_shards_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shards", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert f"--shards {tmp_path / 'none'}" in capsys.readouterr().err
    write_shards(tmp_path / "shards", "train", (16,), side=176)
    places = ["--shards", str(tmp_path / "shards"), "--val_shards", str(tmp_path / "none")]
    assert main([*places, "--out", str(tmp_path / "out")]) == 2
    assert f"--val_shards {tmp_path / 'none'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
