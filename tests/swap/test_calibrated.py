"""The calibrated swap: exact if the teacher is linear, repeatable, and close to the embedded codec."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from compressai.layers import GDN
from compressai.models import FactorizedPrior
from PIL import Image
from torch import Tensor

from relic.codec.metrics import psnr_db
from relic.codec.model import Architecture, build_model, replace_gdn_with_relu
from relic.codec.pixels import to_float
from relic.codec.pretrained import load_codec
from relic.options import Parts
from relic.swap.calibrated import swap_calibrated, weights_of
from samples.photographs import find_photograph


class Linear(GDN):
    """A GDN that changes nothing. Then the layers around it are linear, and a shifted ReLU can be exact."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def random_crops(count: int, side: int = 64, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        crops.append(np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255))
    return torch.from_numpy(np.stack(crops).astype(np.uint8))


def photograph_crops(count: int, side: int = 128) -> Tensor:
    rng = np.random.default_rng(0)
    names = ("astronaut.png", "coffee.png", "motorcycle_left.png", "chelsea.png")
    pictures = [np.asarray(Image.open(find_photograph(f"skimage/data/{name}")).convert("RGB")) for name in names]
    crops = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
        crops.append(picture[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops))


def made_linear(channels: tuple[int, int]) -> FactorizedPrior:
    torch.manual_seed(1)
    model = build_model(Architecture(channels, "none")).eval()
    for transform in (model.g_a, model.g_s):
        for layer in transform:
            if isinstance(layer, GDN):
                layer.__class__ = Linear
    return model


def test_a_linear_encoder_is_recovered() -> None:
    """Except at the borders, where shifted values are next to zeros: the fit to these costs 1 % inside."""
    teacher = made_linear((6, 8))
    student, naive = copy.deepcopy(teacher), copy.deepcopy(teacher)
    fitted = swap_calibrated(student, "encoder", random_crops(16, side=160))
    assert [layer.name for layer in fitted] == ["g_a.2", "g_a.4", "g_a.6"]
    replace_gdn_with_relu(naive, "encoder")
    x = to_float(random_crops(4, side=160, seed=9))
    with torch.no_grad():
        wanted, found, kept = (model.g_a(x)[:, :, 3:-3, 3:-3] for model in (teacher, student, naive))
    deviation = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert float((found - wanted).square().sum() / deviation) < 0.02
    assert float((kept - wanted).square().sum() / deviation) > 0.2


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_it_repeats_itself_and_touches_only_what_was_swapped(parts: Parts) -> None:
    torch.manual_seed(0)
    teacher = build_model(Architecture((4, 6), "none")).eval()
    crops = random_crops(8)
    one, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    swap_calibrated(one, parts, crops)
    torch.rand(7)  # random numbers drawn elsewhere do not matter
    swap_calibrated(other, parts, crops)
    before, states = teacher.state_dict(), (one.state_dict(), other.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    refitted = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}[parts]
    for name, tensor in states[0].items():
        if not name.startswith(refitted):
            assert torch.equal(tensor, before[name]), name
    # A first convolution with the teacher's input keeps its weights. Only its bias is shifted.
    if parts != "decoder":
        assert torch.equal(states[0]["g_a.0.weight"], before["g_a.0.weight"])


def test_crops_held_back_at_the_end_change_nothing_but_the_choice() -> None:
    """Every crop is used: without one of them, the weights differ."""
    torch.manual_seed(0)
    teacher = build_model(Architecture((4, 6), "none")).eval()
    crops = random_crops(8)
    one, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    swap_calibrated(one, "encoder", crops)
    swap_calibrated(other, "encoder", torch.cat([crops[1:], crops[1:2]]))
    assert not torch.equal(one.g_a[2].weight, other.g_a[2].weight)


def test_what_is_swapped_already_is_left_alone_and_progress_ends_at_one() -> None:
    torch.manual_seed(0)
    model = build_model(Architecture((4, 6), "encoder")).eval()
    before = copy.deepcopy(model.g_a.state_dict())
    shares: list[float] = []
    fitted = swap_calibrated(model, "all", random_crops(4), on_progress=shares.append)
    assert [layer.name for layer in fitted] == ["g_s.2", "g_s.4", "g_s.6"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.g_a.state_dict().items())
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert swap_calibrated(model, "all", random_crops(4)) == []


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_the_embedded_codec_keeps_most_of_its_quality(parts: Parts) -> None:
    teacher = load_codec("embedded", quality=8, channels=None).build()
    crops = photograph_crops(20)
    seen, unseen = crops[:16], to_float(crops[16:])
    student, naive = copy.deepcopy(teacher).eval(), copy.deepcopy(teacher).eval()
    swap_calibrated(student, parts, seen)
    replace_gdn_with_relu(naive, parts)
    scores = []
    with torch.no_grad():
        for model in (teacher.eval(), student, naive):
            scores.append(float(psnr_db(unseen, model(unseen)["x_hat"]).mean()))
    of_teacher, of_student, of_naive = scores
    assert of_student > of_naive + 12
    assert of_student > of_teacher - 3


def test_even_bright_pictures_keep_their_brightness() -> None:
    """With shifted ReLUs only, the pictures of 235 and 250 are darker by 4.6 and 7.5."""
    teacher = load_codec("embedded", quality=8, channels=None).build().eval()
    student = copy.deepcopy(teacher)
    fitted = swap_calibrated(student, "decoder", photograph_crops(16))
    assert fitted[-1].bent
    even = torch.stack([torch.full((3, 128, 128), value / 255) for value in (200, 235, 250)])
    with torch.no_grad():
        wanted, found = (255 * model(even)["x_hat"].clamp(0, 1).mean((1, 2, 3)) for model in (teacher, student))
    assert float((found - wanted).abs().max()) < 4.5


def test_errors_count_about_as_much_as_the_codec_is_good_at_a_crop() -> None:
    """From PSNR: a crop at 20 dB more counts a hundred times as much, less what bounds it."""
    teacher = load_codec("embedded", quality=8, channels=None).build().eval()
    crops = photograph_crops(6)
    crops[0] = 128  # without detail
    x = to_float(crops)
    with torch.no_grad():
        psnr = psnr_db(x, teacher(x)["x_hat"].clamp(0, 1)).double()
        weights = weights_of(teacher, [x[:2], x[2:]], torch.device("cpu"))
    errors = 10 ** (-psnr / 10)
    wanted = 1 / (errors + 0.1 * errors.mean())
    assert torch.allclose(weights, wanted / wanted.mean(), rtol=1e-2)
    assert weights.argmax() == 0 and float(weights.max() / weights.min()) > 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", ["g_a.0.weight", "g_a.3.gamma", "g_s.4.weight", "g_s.6.bias"])
def test_weights_that_diverged_end_the_search(name: str, value: float) -> None:
    """No file with such weights is opened, but activations can overflow where every weight is finite."""
    torch.manual_seed(0)
    model = build_model(Architecture((4, 6), "none"))
    model.get_parameter(name).data.view(-1)[0] = value
    crops = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    with contextlib.suppress(torch.linalg.LinAlgError):
        swap_calibrated(model, "all", crops)
