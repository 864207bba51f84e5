"""A codec's file is read once, and its `swap_init` is the same for every reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior, FactorizedPriorReLU

from evaluate.codecs import open_labelled
from export.source import load_source
from relic.codec.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import finished_model, read_codec
from relic.errors import InputError
from relic.options import Parts
from train.main import main


def by_relic(path: Path, replaced: Parts = "all", **fields: Any) -> Path:
    architecture = Architecture((4, 6), replaced)
    save_checkpoint(path, Checkpoint(architecture, build_model(architecture).state_dict(), **fields))
    return path


def by_compressai(path: Path) -> Path:
    torch.save({"state_dict": FactorizedPriorReLU(4, 6).state_dict()}, path)
    return path


@pytest.mark.parametrize("write", [by_relic, by_compressai])
def test_evaluation_and_export_read_a_codec_once(
    write: Callable[[Path], Path], tmp_path: Path, opened: list[Path]
) -> None:
    path = write(tmp_path / "codec.pt")
    open_labelled(str(path), "codec", torch.device("cpu"))
    assert opened.count(path) == 1
    load_source(str(path), None)
    assert opened.count(path) == 2


@pytest.mark.parametrize("write", [by_relic, by_compressai])
def test_a_training_run_reads_its_start_once(
    write: Callable[[Path], Path], crops: Path, tmp_path: Path, opened: list[Path]
) -> None:
    path = write(tmp_path / "codec.pt")
    flags = ["--epochs", "0", "--batch_size", "4", "--calib_images", "4", "--recon_every", "0", "--device", "cpu"]
    assert main(["--shards", str(crops), "--pretrained", str(path), "--save_dir", str(tmp_path / "out"), *flags]) == 0
    assert opened.count(path) == 1


def test_how_a_swap_began_has_one_encoding(tmp_path: Path) -> None:
    path = by_relic(tmp_path / "a.pt", swap_init="calibrated")
    assert read_codec(path, flag="").swap_init == "calibrated"
    content = torch.load(path, weights_only=True)
    del content["swap_init"]
    torch.save(content, path)
    assert read_codec(path, flag="").swap_init == "naive"  # written before the calibrated swap existed
    assert load_checkpoint(by_relic(path, "none", swap_init="naive")).swap_init == "none"
    assert read_codec(by_compressai(path), flag="").swap_init == "unknown"
    torch.save(FactorizedPrior(4, 6).state_dict(), path)
    assert read_codec(path, flag="").swap_init == "none"


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all", "none"])
@pytest.mark.parametrize("before", ["encoder", "decoder", "all", "none"])
def test_an_architecture_knows_where_relu_is_after_a_swap(before: Parts, parts: Parts) -> None:
    sides = {"encoder": {"g_a"}, "decoder": {"g_s"}, "all": {"g_a", "g_s"}, "none": set()}
    swapped = Architecture((4, 6), before).with_relu_in(parts)
    assert swapped.channels == (4, 6) and sides[swapped.replaced] == sides[before] | sides[parts]


def test_a_diverged_codec_is_refused_by_name(tmp_path: Path) -> None:
    path = by_relic(tmp_path / "a.pt")
    codec = load_checkpoint(path)
    codec.model["g_a.0.bias"][1] = float("inf")
    with pytest.raises(InputError, match=r"--ckpt a\.pt: g_a\.0\.bias is not finite"):
        finished_model(codec, "--ckpt a.pt")
