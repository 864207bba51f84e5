"""The crops of a calibration come from different images, and those held out from other images than the rest."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from relic.loader.order import epoch_order
from tests.conftest import write_shards
from tests.train.runs import tiny
from train.calibration_crops import CalibrationCrops, calibration_crops, different_first, split_by_source
from train.config import TrainConfig
from train.main import main
from train.plan import make_plan


def chosen(folder: Path, count: int, crops_per_image: int, samples: int = 48) -> tuple[CalibrationCrops, list[int]]:
    """The crops, and the image of each of them, found by its pixels."""
    packed = write_shards(folder / "set", "train", (samples // 2, samples // 2), 64, crops_per_image=crops_per_image)
    write_shards(folder / "set", "val", (2,))
    config = TrainConfig(
        shards=str(folder / "set"), save_dir=folder / "run", calib_images=count, seed=3, distortion="mse", batch_size=4
    )
    crops = calibration_crops(make_plan(config))
    image_of = {pixels.tobytes(): place // crops_per_image for place, pixels in enumerate(packed.values())}
    return crops, [image_of[crop.numpy().tobytes()] for crop in crops.images]


def test_every_crop_is_of_another_image_where_there_are_enough(tmp_path: Path) -> None:
    """12 images with 4 crops each. The first 12 crops of this epoch are of fewer images."""
    order = epoch_order([24, 24], 3, 0)[:12]
    assert len(set((order // 4).tolist())) < 12
    crops, images = chosen(tmp_path, 12, crops_per_image=4)
    assert sorted(images) == list(range(12))
    assert crops.num_held_out == 3 and crops.num_sources == 12


def test_few_images_give_equally_many_crops_and_none_is_on_both_sides(tmp_path: Path) -> None:
    """3 images with 16 crops each."""
    crops, images = chosen(tmp_path, 24, crops_per_image=16)
    assert set(Counter(images).values()) == {8} and crops.num_sources == 3
    held_out, rest = images[: crops.num_held_out], images[crops.num_held_out :]
    assert len(held_out) == 8 and not set(held_out) & set(rest)


def test_the_crops_of_one_image_are_a_quarter_and_the_rest_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crops, images = chosen(tmp_path, 8, crops_per_image=48)
    assert set(images) == {0} and (crops.num_held_out, crops.num_sources) == (2, 1)
    caplog.set_level("INFO")
    small = ("--distortion", "mse", "--swap_init", "calibrated", "--calib_images", "8", "--epochs", "0")
    assert main(tiny(tmp_path / "set", tmp_path, *small)) == 0
    assert "calibrated on 8 crops of 1 image" in caplog.text
    assert caplog.text.count("all calibration crops are of one image") == 1


def test_the_other_users_of_the_crops_see_the_same_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops, _ = chosen(tmp_path, 12, crops_per_image=4)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "train.preconditioning.Preconditioning.measure", lambda self, images: seen.append(images.clone())
    )
    flags = ("--distortion", "mse", "--seed", "3", "--calib_images", "12", "--swap_init", "calibrated", "--epochs", "0")
    assert main(tiny(tmp_path / "set", tmp_path, *flags)) == 0
    assert len(seen) == 1 and torch.equal(seen[0], crops.images)


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_of_sources_is_split_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, kinds = int(rng.integers(4, 65)), int(rng.integers(2, 12))
    sources = [f"{source}" for source in (rng.integers(0, kinds, count) ** 2 // kinds).tolist()]
    held_out, rest = split_by_source(sources)
    assert sorted(held_out + rest) == list(range(count)) and held_out and rest
    if len(set(sources)) > 1:  # one image in all is the test above
        assert not {sources[place] for place in held_out} & {sources[place] for place in rest}
        smallest = sorted(Counter(sources).values())
        assert len(held_out) >= min(count // 4, sum(smallest[:-1]))
    order = different_first(sources)
    assert sorted(order) == list(range(count))
    earlier = [sources[:place].count(sources[place]) for place in order]
    assert earlier == sorted(earlier)
