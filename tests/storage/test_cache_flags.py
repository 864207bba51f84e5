"""--cache_gb and --cache_dir: with which sets they go, and which folder becomes the cache."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluate.config import EvaluateConfig
from relic.errors import InputError
from relic.storage.cache_flags import check_cache
from relic.storage.spec import resolve_shards
from tests.conftest import refusal, write_shards
from tests.storage.http_shards import serve
from train.config import TrainConfig

URL = "https://host.invalid/train-000000.tar"


def test_flags_that_no_set_needs_are_refused(tmp_path: Path) -> None:
    local = {"--shards": str(tmp_path), "--val_shards": None}
    check_cache(0, None, local)
    with pytest.raises(
        InputError, match=rf"^--cache_gb 2: goes with shards at URLs; --shards {tmp_path} is read where"
    ):
        check_cache(2, None, local)
    both = {"--shards": str(tmp_path), "--val_shards": f"{tmp_path}/{{a,b}}.tar"}
    with pytest.raises(InputError, match=rf"^--cache_dir c: .* --shards {tmp_path} and --val_shards {tmp_path}/"):
        check_cache(0, Path("c"), both)
    for sets in ({"--shards": URL}, {"--shards": str(tmp_path), "--val_shards": "pipe:cat x"}):
        check_cache(0.5, None, sets)


def test_a_folder_that_cannot_hold_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for text in (str(tmp_path / "set"), str(tmp_path / "set" / "{a,b}.tar")):
        for inside in ("set", "set/cache/of"):
            with pytest.raises(
                InputError, match=rf"^--cache_dir {tmp_path}/{inside}: is inside --val_shards {tmp_path}/s"
            ):
                check_cache(0, tmp_path / inside, {"--shards": URL, "--val_shards": text})
        check_cache(0, tmp_path / "setting", {"--shards": URL, "--val_shards": text})
    with pytest.raises(InputError, match=rf"^--cache_dir {tmp_path}/file/x: {tmp_path}/file is not a folder"):
        check_cache(0, tmp_path / "file" / "x", {"--shards": URL})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300"])
def test_a_bound_that_is_no_number_of_gb_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    makers: tuple[Callable[[], object], ...] = (
        lambda: TrainConfig(shards=URL, cache_gb=float(text)),
        lambda: EvaluateConfig(checkpoint=["embedded"], shards=URL, cache_gb=float(text)),
    )
    for make in makers:
        assert refusal(make, capsys) == f"--cache_gb {float(text)}: must be 0 to 1000000000.0"


@pytest.mark.parametrize("flags", [{"cache_gb": 1.0}, {"cache_dir": Path("c")}])
def test_images_need_no_cache(flags: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = flags
    said = refusal(lambda: EvaluateConfig(checkpoint=["embedded"], images=Path("x"), **flags), capsys)  # type: ignore[arg-type]
    assert said == f"--{name}: goes with --shards at URLs; --images are read where they are"


def test_whole_shards_come_into_the_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", counts=(2, 1), side=64)
    with serve(tmp_path / "set") as server:
        for _ in range(2):
            resolve_shards(f"{server.url}/train-{{000000..000001}}.tar", "train", cache_dir=tmp_path / "cache")
        assert server.requests["train-000000.tar"] == 1
    found = sorted(path.name for path in (tmp_path / "cache" / "shards").glob("*/*.tar"))
    assert found == ["train-000000.tar", "train-000001.tar"]
    assert not Path(os.environ["XDG_CACHE_HOME"], "relic", "shards").exists()
