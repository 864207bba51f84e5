"""Quantiles, tables, and modules kept in fp32."""

import itertools

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.layers import GDN
from torch import nn

from relic.bitstream.tables import dequantize
from relic.codec.coding import analyse, pad_to_stride, tables_of
from relic.codec.entropy import lighten_forward, refresh_tables, solve_quantiles
from relic.codec.loss import LossConfig, compute_loss
from relic.codec.model import Architecture, build_model
from relic.codec.precision import fp32_modules, keep_in_fp32
from relic.errors import InputError


def shifted_bottleneck(seed: int = 0) -> EntropyBottleneck:
    torch.manual_seed(seed)
    bottleneck = EntropyBottleneck(6)
    with torch.no_grad():
        for parameter in (*bottleneck.matrices, *bottleneck.biases):
            parameter += 0.3 * torch.randn_like(parameter)
    return bottleneck


def test_quantiles_are_where_the_density_says() -> None:
    bottleneck = shifted_bottleneck()
    solve_quantiles(bottleneck)
    with torch.no_grad():
        mass = torch.sigmoid(bottleneck._logits_cumulative(bottleneck.quantiles, stop_gradient=True)).double()
    assert torch.allclose(mass[:, 0, 1], torch.full((6,), 0.5, dtype=torch.float64), atol=1e-3)
    assert (mass[:, 0, 0] < 1e-8).all() and (1 - mass[:, 0, 2] < 1e-6).all()


def test_a_diverged_density_is_an_error_not_an_endless_search() -> None:
    bottleneck = shifted_bottleneck()
    bottleneck.biases[1].data[2] = float("nan")
    with pytest.raises(InputError, match=r"entropy_bottleneck\.biases\.1 is not finite"):
        solve_quantiles(bottleneck)


def test_tables_follow_the_density_and_a_frozen_one_keeps_its_quantiles() -> None:
    model = build_model(Architecture((4, 6), "all"))
    refresh_tables(model, solve=True)
    before, quantiles = model.entropy_bottleneck._quantized_cdf.clone(), model.entropy_bottleneck.quantiles.clone()
    with torch.no_grad():
        model.entropy_bottleneck.matrices[0] += 0.5
    assert not model.update()  # CompressAI's own call does not update them
    refresh_tables(model, solve=False)
    assert torch.equal(model.entropy_bottleneck.quantiles, quantiles)
    kept = model.entropy_bottleneck._quantized_cdf
    assert kept.shape != before.shape or not torch.equal(kept, before)
    refresh_tables(model, solve=True)
    assert not torch.equal(model.entropy_bottleneck.quantiles, quantiles)


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (48, 64)])
def test_symbols_and_back_is_the_models_own_forward(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = build_model(Architecture((4, 6), "encoder")).eval()
    refresh_tables(model, solve=True)
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        y_hat = torch.from_numpy(dequantize(analyse(model, x)[0], tables_of(model)))[None]
        x_hat = model.g_s(y_hat)[:, :, : size[0], : size[1]]
        own = model(pad_to_stride(x))["x_hat"][:, :, : size[0], : size[1]]
    assert torch.allclose(x_hat, own, atol=1e-6)
    assert tables_of(model).stride == 16


def test_policies_are_nested_supersets() -> None:
    model = build_model(Architecture((4, 6), "encoder"))
    model.extra = nn.Sequential(nn.BatchNorm2d(2), nn.Softmax(1))
    covered = [
        {id(inner) for module in fp32_modules(model, policy).values() for inner in module.modules()}
        for policy in ("none", "entropy", "entropy+decoder", "all_normexp")
    ]
    for smaller, larger in itertools.pairwise(covered):
        assert smaller <= larger
    names = set(fp32_modules(model, "all_normexp"))
    assert {"entropy_bottleneck", "g_s", "extra.0", "extra.1"} <= names
    assert all(id(module) in covered[3] for module in model.modules() if isinstance(module, GDN))
    custom = fp32_modules(model, "custom", ["Conv2d"])
    assert {"g_a.0", "g_a.6", "entropy_bottleneck"} <= set(custom)
    with pytest.raises(InputError, match=r"--local_fp32_custom Nothing: matches no module; classes here: .*GDN"):
        fp32_modules(model, "custom", ["Conv2d", "Nothing"])


def test_gdn_is_in_fp32_beside_fp16_where_its_squares_would_be_infinite() -> None:
    model = build_model(Architecture((4, 6), "encoder"))
    layer, x = model.g_s[1], torch.full((1, 4, 8, 8), 300.0)
    wanted = layer(x)
    assert "g_s.1" not in fp32_modules(model, "entropy")
    assert "g_s.1" in keep_in_fp32(model, "none", dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.isinf(torch.nn.functional.conv2d(x**2, layer.gamma.view(4, 4, 1, 1))).any()
        found = layer(x.half())
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


@pytest.mark.parametrize("policy", ["none", "entropy", "entropy+decoder", "all_normexp"])
def test_likelihoods_are_fp32_under_autocast_and_no_key_changes(policy: str) -> None:
    model = build_model(Architecture((4, 6), "encoder"))
    names = list(model.state_dict())
    keep_in_fp32(model, policy)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.rand(1, 3, 32, 32))
    assert output["likelihoods"]["y"].dtype == torch.float32
    assert (output["x_hat"].dtype == torch.float32) == (policy in ("entropy+decoder", "all_normexp"))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("training", [True, False])
def test_the_lighter_forward_computes_the_same(training: bool) -> None:
    """In float64, where the order of sums does not matter."""
    ours, theirs = shifted_bottleneck().double(), shifted_bottleneck().double()
    lighten_forward(ours, rate_is_trained=True)
    results = []
    for bottleneck in (ours, theirs):
        torch.manual_seed(3)
        x = torch.linspace(-9, 9, 2 * 6 * 4 * 5, dtype=torch.float64).view(2, 6, 4, 5).requires_grad_()
        y_hat, likelihoods = bottleneck.train(training)(x)
        (y_hat.square().sum() - torch.log2(likelihoods).sum()).backward()
        gradients = [p.grad for name, p in bottleneck.named_parameters() if name != "quantiles"]
        results.append([y_hat, likelihoods, x.grad, *gradients])
    assert len(results[0]) > 10
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*results, strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_without_a_rate_in_the_loss_nothing_behind_the_likelihoods_runs_backward() -> None:
    """The gradients of the weights are the same bits as with the gradient of zeros that CompressAI's layer computes."""
    models = [build_model(Architecture((4, 6), "encoder")) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    lighten_forward(models[0].entropy_bottleneck, rate_is_trained=False)
    outputs = []
    for model in models:
        model.entropy_bottleneck.requires_grad_(False)
        torch.manual_seed(3)
        x = torch.rand(2, 3, 176, 176)
        outputs.append(model.train()(x))
        likelihoods = outputs[-1]["likelihoods"]["y"]
        assert likelihoods.requires_grad == (model is models[1])
        compute_loss(x, outputs[-1]["x_hat"], likelihoods, LossConfig("recon", "l1_msssim", 0.4, 0.0)).total.backward()
    assert torch.allclose(outputs[0]["likelihoods"]["y"], outputs[1]["likelihoods"]["y"], rtol=5e-6, atol=1e-7)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or (torch.equal(ours.grad, theirs.grad) and bool(ours.grad.any()))
    graph, names = [outputs[0]["x_hat"].grad_fn], set()
    while graph:
        node = graph.pop()
        names.add(type(node).__name__)
        graph += [next_node for next_node, _ in node.next_functions if next_node is not None]
    assert "ConvolutionBackward0" in names
    assert not names & {"SigmoidBackward0", "TanhBackward0"}
