"""From a file's tensors to a model: constants are those of the code, and the forms of other tools are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from torch import Tensor

from relic.codec import weights
from relic.codec.checkpoint import Checkpoint
from relic.codec.entropy import MAX_TAIL, check_quantiles, refresh_tables, solve_quantiles
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import finished_model, load_codec, read_codec
from relic.errors import InputError

ARCHITECTURE = Architecture((4, 6), "none")


def gdn_codec(seed: int = 0) -> FactorizedPrior:
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURE).eval()
    refresh_tables(model, solve=True)
    return model


def read(path: Path, content: dict[str, Any]) -> FactorizedPrior:
    torch.save(content, path)
    return read_codec(path, flag="--checkpoint").build()


def constants_of(model: FactorizedPrior) -> dict[str, Tensor]:
    """All buffers without the tables."""
    tables = ("_offset", "_quantized_cdf", "_cdf_length")
    return {name: tensor for name, tensor in model.named_buffers() if not name.endswith(tables)}


@pytest.mark.parametrize(
    "change", [lambda t: t.half(), lambda t: t * 0, lambda t: t * 0 + 7, lambda t: t * float("nan")]
)
def test_constants_and_tables_are_those_of_the_code(tmp_path: Path, change: Any) -> None:
    model = gdn_codec()
    parameters = dict(model.named_parameters())
    state = {n: t if n in parameters else change(t.float()) for n, t in model.state_dict().items()}
    assert state["entropy_bottleneck.likelihood_lower_bound.bound"].item() != pytest.approx(1e-9, rel=1e-3)
    loaded = read(tmp_path / "a.pth", {"state_dict": state})
    for name, constant in constants_of(model).items():
        assert torch.equal(dict(loaded.named_buffers())[name], constant), name
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x)["x_hat"], model(x)["x_hat"])
    assert torch.equal(loaded(x)["likelihoods"]["y"], model(x)["likelihoods"]["y"])


def test_a_file_without_constants_and_tables_is_whole(tmp_path: Path) -> None:
    model = gdn_codec()
    loaded = read(tmp_path / "a.pth", {"state_dict": dict(model.named_parameters())})
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x)["x_hat"], model(x)["x_hat"])


def test_tables_are_kept_only_if_they_can_code(tmp_path: Path) -> None:
    state = gdn_codec().state_dict()
    names = [f"entropy_bottleneck.{name}" for name in ("_quantized_cdf", "_cdf_length", "_offset")]
    loaded = read(tmp_path / "a.pth", state)
    assert all(torch.equal(dict(loaded.named_buffers())[name], state[name]) for name in names)
    for name in names:
        whole = state[name]
        for changed in (
            whole * 0 - (1 << 30),
            whole + (1 << 28),
            whole[:1],
            whole.half(),
            whole[..., None],
            whole.sum(),
        ):
            loaded = read(tmp_path / "a.pth", {**state, name: changed})
            assert loaded.entropy_bottleneck._quantized_cdf.numel() == 0
            refresh_tables(loaded, solve=False)
            assert all(torch.equal(dict(loaded.named_buffers())[each], state[each]) for each in names)


def test_fp16_and_float64_become_fp32(tmp_path: Path) -> None:
    model = gdn_codec()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        loaded = read(tmp_path / "a.pth", {n: t.to(dtype) for n, t in model.state_dict().items()})
        for name, parameter in model.named_parameters():
            assert torch.equal(loaded.get_parameter(name), parameter.to(dtype).float())


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "network"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_forms_of_other_tools_are_read(tmp_path: Path, key: str | None, prefix: str) -> None:
    model = gdn_codec()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    loaded = read(tmp_path / "a.pth", {key: state, "epoch": 3} if key else state)
    assert all(torch.equal(loaded.get_parameter(name), each) for name, each in model.named_parameters())


def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path) -> None:
    state = gdn_codec().state_dict()
    for content, said in (
        ({"ema": state, "epoch": 1}, "a state dict is looked for at state_dict, model_state_dict, network, found: ema"),
        ({"state_dict": {"a.weight": torch.ones(1)}}, "has no g_a.0.weight and g_a.6.weight, but a.weight"),
        ({**state, "module.g_a.0.weight": torch.ones(1)}, "g_a.0.weight is there twice"),
        ({**state, "entropy_bottleneck": torch.ones(1)}, "entropy_bottleneck is unknown"),
        ({**state, "entropy_bottleneck._bias0": torch.ones(1)}, "twice, under its old and its new name"),
    ):
        with pytest.raises(InputError, match=said):
            read(tmp_path / "a.pth", content)


def test_tensors_that_do_not_fit_are_named_with_a_way_out(tmp_path: Path) -> None:
    state = gdn_codec().state_dict()
    weight = state["g_a.2.weight"]
    for content, said in (
        ({name: tensor for name, tensor in state.items() if name != "g_a.2.weight"}, "g_a.2.weight is missing"),
        ({**state, "extra.weight": weight}, "extra.weight is unknown"),
        ({**state, "g_a.2.weight": weight[:1]}, "g_a.2.weight has another shape"),
        ({**state, "g_a.2.weight": weight.int()}, "g_a.2.weight holds torch.int32"),
    ):
        with pytest.raises(InputError, match=f"{said}.*; use a checkpoint of a bmshj2018_factorized alone$"):
            read(tmp_path / "a.pth", content)


def test_building_draws_the_same_random_numbers_whether_shapes_are_known_or_not() -> None:
    checkpoint = Checkpoint(ARCHITECTURE, gdn_codec().state_dict())
    drawn = []
    for known in (False, True):
        if not known:
            weights._marked_shapes.cache_clear()
        torch.manual_seed(5)
        checkpoint.build()
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", [name for name, _ in build_model(ARCHITECTURE).named_parameters()])
def test_no_door_takes_a_weight_that_is_not_finite(tmp_path: Path, name: str) -> None:
    state = gdn_codec().state_dict()
    state[name].view(-1)[-1] = float("nan")
    torch.save(state, tmp_path / "a.pth")
    codec = load_codec(str(tmp_path / "a.pth"), quality=1, channels=None)
    with pytest.raises(InputError, match=rf"--pretrained a\.pth: {name} is not finite"):
        codec.build("--pretrained a.pth")
    with pytest.raises(InputError, match=rf"--pretrained a\.pth: {name} is not finite"):
        finished_model(codec, "--pretrained a.pth")


def test_quantiles_are_solved_as_compressai_solves_them() -> None:
    torch.manual_seed(3)
    ours = EntropyBottleneck(12)
    with torch.no_grad():
        for parameter in (*ours.matrices, *ours.biases, *ours.factors):
            parameter += 0.5 * torch.randn_like(parameter)
    theirs = EntropyBottleneck(12)
    theirs.load_state_dict(ours.state_dict())
    solve_quantiles(ours)
    theirs._update_quantiles()
    assert torch.equal(ours.quantiles, theirs.quantiles)


@pytest.mark.parametrize("extreme", [3e38, -3e38, 1e30, -1e30])
@pytest.mark.parametrize("name", ["matrices", "biases", "factors"])
def test_no_finite_density_is_searched_for_ever(name: str, extreme: float) -> None:
    model = gdn_codec()
    for number in range(4):
        with torch.no_grad():
            getattr(model.entropy_bottleneck, name)[number][2] = extreme
    try:
        refresh_tables(model, solve=True)
    except InputError as error:
        assert "diverged" in str(error) and "\n" not in str(error)
    else:
        assert model.entropy_bottleneck._quantized_cdf.size(1) <= 2 * MAX_TAIL + 3


def test_quantiles_out_of_range_name_their_channel() -> None:
    bottleneck = EntropyBottleneck(6)
    check_quantiles(bottleneck)
    bottleneck.quantiles.data[3] = torch.tensor([0.5, 0.0, 1.0])  # an auxiliary loss leaves such
    check_quantiles(bottleneck)
    for wrong in ([-5000.0, 0, 1], [-1, 0, 5000], [9, 0, 10], [-10, 0, -9], [1e6, 1e6, 1e6], [float("nan"), 0, 1]):
        bottleneck.quantiles.data[3] = torch.tensor(wrong)
        with pytest.raises(InputError, match=r"a\.pt: entropy_bottleneck\.quantiles of channel 3 are"):
            check_quantiles(bottleneck, "a.pt")
