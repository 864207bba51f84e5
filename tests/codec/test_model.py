"""Swaps and train scopes, against CompressAI's classes and against what three steps change."""

import itertools

import pytest
import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior, FactorizedPriorReLU
from torch import nn

from relic.codec.entropy import refresh_tables
from relic.codec.loss import LossConfig, compute_loss
from relic.codec.model import Architecture, architecture_of, build_model, replace_gdn_with_relu
from relic.codec.scope import freeze_unreachable, set_trainable_parts
from relic.errors import InputError
from relic.options import Parts, Scope

PARTS: tuple[Parts, ...] = ("none", "encoder", "decoder", "all")
SCOPES: tuple[Scope, ...] = ("replaced", "replaced+hyper", "all")


@pytest.mark.parametrize(("mode", "replaced"), [("none", 0), ("encoder", 3), ("decoder", 3), ("all", 6)])
def test_only_the_named_parts_lose_their_gdn(mode: Parts, replaced: int) -> None:
    model = FactorizedPrior(8, 12)
    assert replace_gdn_with_relu(model, mode) == replaced
    gdn = {part: sum(isinstance(layer, GDN) for layer in getattr(model, part)) for part in ("g_a", "g_s")}
    assert gdn == {"g_a": 0 if mode in ("encoder", "all") else 3, "g_s": 0 if mode in ("decoder", "all") else 3}
    assert architecture_of(model.state_dict()) == Architecture((8, 12), mode)
    assert not any(layer.inplace for layer in model.modules() if isinstance(layer, nn.ReLU))


@pytest.mark.parametrize(("mode", "theirs"), [("none", FactorizedPrior), ("all", FactorizedPriorReLU)])
def test_state_dict_loads_strictly_into_compressai(mode: Parts, theirs: type[FactorizedPrior]) -> None:
    ours = build_model(Architecture((8, 12), mode)).eval()
    refresh_tables(ours, solve=True)
    other = theirs(8, 12).eval()
    other.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 32, 48)
    assert torch.equal(ours(x)["x_hat"], other(x)["x_hat"])


def belongs(name: str, parts: Parts, scope: Scope) -> bool:
    if name.endswith("quantiles"):
        return False
    transforms = {"encoder": ("g_a.",), "decoder": ("g_s.",), "all": ("g_a.", "g_s."), "none": ()}[parts]
    return scope == "all" or name.startswith(transforms) or (scope == "replaced+hyper" and "entropy" in name)


@pytest.mark.parametrize(
    ("parts", "scope"), [c for c in itertools.product(PARTS, SCOPES) if c[0] != "none" or c[1] == "all"]
)
@pytest.mark.parametrize("loss_type", ["rd", "recon"])
def test_three_steps_change_exactly_the_scope(parts: Parts, scope: Scope, loss_type: str) -> None:
    torch.manual_seed(0)
    model = build_model(Architecture((4, 6), parts)).train()
    # In a small random model some ReLUs are always zero, and would hide what is trained.
    for layer in itertools.chain(model.g_a, model.g_s):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.bias.data.fill_(0.5)  # type: ignore[union-attr]
    set_trainable_parts(model, parts, scope)
    frozen = freeze_unreachable(model, loss_type)
    assert all(name.startswith("entropy_bottleneck.") for name in frozen)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        x = torch.rand(1, 3, 64, 64)
        output = model(x)
        config = LossConfig("rd" if loss_type == "rd" else "recon", "mse", 0.4, 0.01)
        compute_loss(x, output["x_hat"], output["likelihoods"]["y"], config).total.backward()
        assert all(parameter.grad is not None for parameter in trainable)
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    reached = {name for name, _ in model.named_parameters() if loss_type == "rd" or "entropy" not in name}
    assert changed == {name for name in reached if belongs(name, parts, scope)}


def test_a_scope_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"--train_scope replaced.*--train_scope all"):
        set_trainable_parts(FactorizedPrior(4, 6), "none", "replaced")
