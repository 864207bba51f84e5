"""What `--train_scope` trains, and the gradients that a swapped codec starts with."""

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from relic.cli import parse
from relic.codec.loss import LossConfig, compute_loss
from relic.codec.model import Architecture, build_model, replace_gdn_with_relu
from relic.codec.pretrained import load_codec
from relic.distributed import World
from tests.train.runs import Run, tiny, weights
from train.build import _shared
from train.config import TrainConfig

PREFIXES = {"encoder": {"g_a"}, "decoder": {"g_s"}, "all": {"g_a", "g_s"}}
MADE_OF_THE_DENSITY = {
    f"entropy_bottleneck.{name}" for name in ("quantiles", "_offset", "_quantized_cdf", "_cdf_length")
}


@pytest.mark.parametrize(
    ("part", "scope", "loss"), itertools.product(PREFIXES, ("replaced", "replaced+hyper", "all"), ("recon", "rd"))
)
def test_three_steps_change_exactly_the_named_tensors(
    run: Run, tmp_path: Path, part: str, scope: str, loss: str
) -> None:
    flags = ("--replace_parts", part, "--train_scope", scope, "--loss_type", loss, "--seed", "1", "--lr", "1e-2")
    assert run(*flags, "--epochs", "0", folder=tmp_path / "before") == 0
    assert run(*flags, "--epochs", "1", folder=tmp_path / "after") == 0
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    changed = {name for name in before if not torch.equal(before[name], after[name])} - MADE_OF_THE_DENSITY
    rooms = {"g_a", "g_s"} if scope == "all" else set(PREFIXES[part])
    if loss == "rd" and scope != "replaced":
        rooms.add("entropy_bottleneck")
    named = {name for name in before if name.split(".")[0] in rooms} - MADE_OF_THE_DENSITY
    # Constants of GDN and of the likelihood's floor are buffers: kept in the state, never trained.
    named &= {name for name, _ in build_model(Architecture((4, 6), part)).named_parameters()}  # type: ignore[arg-type]
    assert changed == named
    if "entropy_bottleneck" not in rooms:
        assert all(torch.equal(before[name], after[name]) for name in MADE_OF_THE_DENSITY)


@pytest.mark.parametrize("loss_type", ["recon", "rd"])
@pytest.mark.parametrize("picture", ["black", "white", "grey", "noise"])
def test_gradients_right_after_the_swap_are_finite_and_there(picture: str, loss_type: Any) -> None:
    model = load_codec("embedded", quality=1, channels=None).build()
    replace_gdn_with_relu(model, "all")
    torch.manual_seed(0)
    level = {"black": 0.0, "white": 1.0, "grey": 0.5, "noise": 0.0}[picture]
    x = torch.rand(2, 3, 176, 176) if picture == "noise" else torch.full((2, 3, 176, 176), level)
    output = model.train()(x)
    loss = compute_loss(x, output["x_hat"], output["likelihoods"]["y"], LossConfig(loss_type, "l1_msssim", 0.4, 0.01))
    loss.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert torch.isfinite(loss.total) and all(torch.isfinite(gradient).all() for gradient in gradients.values())
    for transform in ("g_a", "g_s"):
        assert any(gradient.abs().max() > 0 for name, gradient in gradients.items() if name.startswith(transform))


def test_ranks_keep_their_buffers_without_a_deprecated_argument(crops: Path, tmp_path: Path) -> None:
    config = parse(TrainConfig, tiny(crops, tmp_path), prog="train")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shared = _shared(build_model(Architecture((4, 6), "all")), config, World(0, 2, torch.device("cpu")))
        assert not (shared.forward_sync_buffers and shared.modules_buffers)
    finally:
        dist.destroy_process_group()
