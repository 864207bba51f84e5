"""Checkpoints and pretrained files: loaded strictly and safely, with CompressAI's names."""

import os
import pickle
import resource
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior, FactorizedPriorReLU
from torch._subclasses.fake_tensor import FakeTensorMode

from relic import __version__
from relic.codec import pretrained, tensor_file
from relic.codec.checkpoint import (
    Checkpoint,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import load_codec, read_codec
from relic.errors import InputError
from relic.options import Parts


def saved(path: Path, replaced: Parts = "all") -> Checkpoint:
    model = build_model(Architecture((4, 6), replaced))
    refresh_tables(model, solve=True)
    checkpoint = Checkpoint(Architecture((4, 6), replaced), model.state_dict(), metrics={"psnr_db": 1.5})
    save_checkpoint(path, checkpoint)
    return checkpoint


@pytest.mark.parametrize("replaced", ["none", "encoder", "decoder", "all"])
def test_a_checkpoint_knows_itself(tmp_path: Path, replaced: Parts) -> None:
    checkpoint = saved(tmp_path / "a.pt", replaced)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.architecture == checkpoint.architecture and loaded.metrics == {"psnr_db": 1.5}
    x = torch.rand(1, 3, 32, 32)
    before = build_model(checkpoint.architecture).eval()
    before.load_state_dict(checkpoint.model)
    assert torch.equal(loaded.build()(x)["x_hat"], before(x)["x_hat"])
    theirs = {"none": FactorizedPrior, "all": FactorizedPriorReLU}.get(replaced)
    if theirs:
        content = torch.load(tmp_path / "a.pt", weights_only=True)
        theirs(4, 6).load_state_dict(content["model"], strict=True)


def test_the_version_that_wrote_it_is_in_a_checkpoint_and_older_ones_load_without(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content.pop("relic_version") == __version__
    torch.save(content, tmp_path / "older.pt")
    assert load_checkpoint(tmp_path / "older.pt").metrics == {"psnr_db": 1.5}


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, as_zip: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "was-run"
    if as_zip:
        torch.save({"model": Harmful(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Harmful(trace)}))
    with pytest.raises(InputError, match=r"--checkpoint .*evil\.pt"):
        load_checkpoint(path)
    assert not trace.exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    saved(tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    for length in (10, 700, 3000, len(whole) - 40):
        (tmp_path / f"cut{length}.pt").write_bytes(whole[:length])
    cut = [path.name for path in tmp_path.glob("cut?*.pt")]
    for name in ("text.pt", "empty.pt", "other.pt", "missing.pt", *cut):
        with pytest.raises(InputError, match=f"--checkpoint .*{name}: ") as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_other_versions_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**content, "version": 99}, tmp_path / "new.pt")
    with pytest.raises(InputError, match="checkpoint version 99, this relic reads 1"):
        load_checkpoint(tmp_path / "new.pt")
    for name in ("version", "architecture", "model"):
        torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "partial.pt")
        with pytest.raises(InputError, match=r"--checkpoint .*partial\.pt: "):
            load_checkpoint(tmp_path / "partial.pt")
    del content["model"]["g_a.2.bias"]
    torch.save(content, tmp_path / "less.pt")
    with pytest.raises(InputError, match=r"g_a\.2\.bias"):
        load_checkpoint(tmp_path / "less.pt").build()


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"a": 1}},
        {"architecture": "bmshj"},
        {"architecture": {"name": "bmshj2018_factorized", "channels": [-4, 6], "replaced": "all"}},
        {"architecture": {"name": "bmshj2018_factorized", "channels": ["x", 6], "replaced": "all"}},
        {"architecture": {"name": "bmshj2018_factorized", "channels": [4, 6], "replaced": "foo"}},
        {"architecture": {"name": "other", "channels": [4, 6], "replaced": "all"}},
    ],
)
def test_a_checkpoint_of_wrong_types_is_an_input_error(tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path / "a.pt")
    torch.save({**torch.load(tmp_path / "a.pt", weights_only=True), **change}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"--checkpoint .*b\.pt: "):
        load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [{0: torch.ones(1)}, {"state_dict": [1]}, [1], {"state_dict": {"a": 1}}])
def test_a_foreign_file_of_wrong_types_is_an_input_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"--pretrained .*b\.pt: "):
        read_codec(tmp_path / "b.pt", flag="--pretrained")


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relic.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The key names of CompressAI's released files, with DataParallel's prefix."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in (("matrices.", "_matrices."), ("biases.", "_biases."), ("factors.", "_factors.")):
            name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
        renamed[f"module.{name}"] = tensor
    return renamed


@pytest.mark.parametrize("wrapped", [True, False])
def test_compressai_files_load_under_old_and_new_names(tmp_path: Path, wrapped: bool) -> None:
    theirs = FactorizedPriorReLU(4, 6).eval()
    theirs.update()
    x = torch.rand(1, 3, 32, 32)
    for number, state in enumerate((theirs.state_dict(), old_names(theirs.state_dict()))):
        path = tmp_path / f"{number}.pth.tar"
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
        codec = read_codec(path, flag="--pretrained")
        assert codec.architecture == Architecture((4, 6), "all") and codec.swap_init == "unknown"
        assert torch.equal(codec.build()(x)["x_hat"], theirs(x)["x_hat"])


def test_the_zoo_is_compressais_download(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = FactorizedPrior(128, 192)
    theirs.update()
    asked = []

    def local(url: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        return {name.removeprefix("module."): tensor for name, tensor in old_names(theirs.state_dict()).items()}

    monkeypatch.setattr("compressai.zoo.image.load_state_dict_from_url", local)
    codec = load_codec("zoo", quality=3, channels=None)
    assert "bmshj2018-factorized-prior-3" in asked[0]
    assert codec.architecture == Architecture((128, 192), "none")
    assert torch.equal(codec.build().g_a[0].weight, theirs.g_a[0].weight)


def test_without_a_network_the_zoo_names_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("compressai.zoo.image.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match="--pretrained embedded, --pretrained FILE or --pretrained none"):
        load_codec("zoo", quality=1, channels=None)


@pytest.mark.skipif(not pretrained.EMBEDDED_FILE.exists(), reason="the embedded codec's weights are not there")
def test_the_embedded_codec_is_small_and_loads() -> None:
    assert pretrained.EMBEDDED_FILE.stat().st_size < 2_000_000
    codec = load_codec("embedded", quality=8, channels=None)
    assert codec.architecture.replaced == codec.swap_init == "none"
    assert sum(parameter.numel() for parameter in codec.build().parameters()) > 100_000


@pytest.mark.parametrize("bytes_left", [0, 1000, 5000, 20000])
def test_a_disk_that_fills_anywhere_in_a_checkpoint_is_an_error_of_the_disk(tmp_path: Path, bytes_left: int) -> None:
    """torch's own error is about an unexpected position. A limit on file sizes simulates a full disk."""
    path = tmp_path / "a.pt"
    checkpoint, before = saved(path), path.read_bytes()
    assert len(before) > 20000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, limits[1]))
        with pytest.raises(OSError, match=r"File too large.*a\.pt"):
            save_checkpoint(path, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_the_random_state_is_that_of_the_rank_s_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is that of the current device. Its number may differ: fewer devices, or another local rank."""
    restored: list[tuple[list[int], torch.device]] = []
    cuda, cpu = torch.device("cuda", 1), torch.device("cpu")
    numbers = {torch.device("cuda", 0): 6, cuda: 7}
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: torch.tensor([numbers[device]], dtype=torch.uint8))
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    state = random_state(cuda)
    drawn = torch.rand(3)
    restore_random_state(state, cuda)
    assert torch.equal(torch.rand(3), drawn) and restored == [([7], cuda)]
    restore_random_state(state, cpu)
    assert torch.equal(torch.rand(3), drawn) and len(restored) == 1
    assert random_state(cpu)["cuda"] is None


def test_what_was_checked_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run replaces its checkpoint while it is read, or someone replaces it after the check."""
    first = saved(tmp_path / "last.pt", "all")
    saved(tmp_path / "next.pt", "none")
    check = tensor_file._check_pickles

    def check_and_replace(*given: Any) -> None:
        check(*given)
        os.replace(tmp_path / "next.pt", tmp_path / "last.pt")

    monkeypatch.setattr(tensor_file, "_check_pickles", check_and_replace)
    assert load_checkpoint(tmp_path / "last.pt").architecture == first.architecture
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt").architecture.replaced == "none"


def test_all_tensors_of_a_file_are_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a plain `torch.load` of a GPU run's file fails on a machine without CUDA."""
    saved: dict[str, Any] = {}
    monkeypatch.setattr(torch, "save", lambda content, file: saved.update(content))
    with FakeTensorMode():  # tensors that claim to be on a GPU
        model = {"weight": torch.ones(2, device="cuda"), "other": torch.ones(3)}
        training = {"optimizer": {"state": {0: {"exp_avg": model["weight"]}}}, "random": [{"torch": torch.ones(1)}]}
        save_checkpoint(tmp_path / "best.pt", Checkpoint(Architecture((4, 6), "all"), model, training=training))
    found = [
        *saved["model"].values(),
        saved["training"]["optimizer"]["state"][0]["exp_avg"],
        saved["training"]["random"][0]["torch"],
    ]
    assert [each.device.type for each in found] == ["cpu"] * 4
    assert model["weight"].device.type == "cuda"
