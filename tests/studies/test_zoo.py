"""The study of the zoo: its plan, its table, what it refuses, and a run on small codecs in the zoo's format."""

import shlex
from pathlib import Path
from typing import Any

import bjontegaard
import pytest
from PIL import Image

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from relic.cli import parse
from studies.runs import Study
from studies.zoo import ZooConfig, main, read_zoo_plan, zoo_table
from tests.conftest import refusal, write_shards
from train.config import TrainConfig

HERE = Path("here")
ROOT = Path(__file__).resolve().parents[2]


def config(**changed: Any) -> ZooConfig:
    values: dict[str, Any] = {"shards": HERE, "images": HERE, "quality": ["1"]}
    return ZooConfig(**values | changed)


def result(kind: str, teacher: str, codings: dict[str, tuple[float, float]]) -> dict[str, Any]:
    figures = {
        f"{title}-{coding}": {"figures": [{"bpp_real": bpp, "psnr_db": psnr_db}]}
        for title in ("val", "images")
        for coding, (bpp, psnr_db) in codings.items()
    }
    return {"settings": {"kind": kind, "teacher": teacher}, "evaluations": figures}


POINTS = {"q1": (0.1, 26.0), "q2": (0.2, 28.0), "q3": (0.35, 30.5), "q4": (0.6, 33.0)}


def results(rates: int) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for teacher, (bpp, psnr_db) in list(POINTS.items())[:rates]:
        gdn = {"plain": (bpp, psnr_db), "contexts": (0.9 * bpp, psnr_db)}
        relu = {"contexts": (0.95 * bpp, psnr_db - 0.1), "rdoq": (0.9 * bpp, psnr_db - 0.2)}
        made |= {f"gdn-{teacher}": result("gdn", teacher, gdn), f"relu-{teacher}": result("relu", teacher, relu)}
    return made


@pytest.mark.parametrize(
    ("texts", "numbers"), [(["1..8"], list(range(1, 9))), (["3", "1"], [1, 3]), (["2..3", "3", "8"], [2, 3, 8])]
)
def test_qualities_are_numbers_and_ranges(texts: list[str], numbers: list[int]) -> None:
    assert config(quality=texts).qualities == numbers
    plan = read_zoo_plan(config(quality=texts))
    assert [run.name for run, _ in plan] == [f"{kind}-q{number}" for number in numbers for kind in ("gdn", "relu")]
    kinds = [run.settings["kind"] for run, _ in read_zoo_plan(config(epochs=2))]
    assert kinds == ["gdn", "relu", "trained"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--quality", "0"], "--quality 0: expected numbers from 1 to 8"),
        (["--quality", "5..2"], "--quality 5..2"),
        (["--quality", "1,2"], "--quality 1,2"),
        ([], "give one of the two, neither is given"),
        (["--quality", "1", "--teachers", "D"], "give one of the two, both are given"),
        (["--quality", "1", "--epochs", "-1"], "--epochs -1"),
        (["--quality", "1", "--lr", "1e-3"], "--lr 0.001: must be over 0, and goes with --epochs"),
        (["--quality", "1", "--epochs", "1", "--lr", "0"], "--lr 0"),
    ],
)
def test_wrong_flags_are_named(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--shards", "S", "--images", "I", *flags]
    assert words in refusal(lambda: parse(ZooConfig, given, prog="studies/zoo.py"), capsys)


def test_teachers_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(**changed: Any) -> str:
        return refusal(lambda: read_zoo_plan(config(quality=None, teachers=tmp_path / "t", **changed)), capsys)

    assert "no such folder" in said()
    (tmp_path / "t").mkdir()
    assert "holds no file" in said()
    (tmp_path / "t" / "bmshj2018-factorized-prior-1-446d5c7f.pth.tar").touch()
    assert said() == "" and "rename it as teacher-0.0023.pt" in said(epochs=1)
    (tmp_path / "t" / "a b.pt").touch()
    assert "'a b.pt'" in said()


def test_each_codec_is_tuned_with_the_rate_of_its_training(tmp_path: Path) -> None:
    (tmp_path / "teacher-0.0046.pt").touch()
    (own,) = (run for run, _ in read_zoo_plan(config(quality=None, teachers=tmp_path, epochs=2)) if run.export)
    (third,) = (run for run, _ in read_zoo_plan(config(quality=["3"], epochs=2)) if run.export)
    assert "--lambda_bpp 0.0046 " in own.train and "--lr 2e-3 " in own.train and "--lr 5e-4 " in third.train
    (slow,) = (run for run, _ in read_zoo_plan(config(quality=["3"], epochs=2, lr=3e-4)) if run.export)
    assert "--lr 0.0003 " in slow.train
    assert "--lambda_bpp 0.0023 " in third.train  # of CompressAI's 0.0067, as docs/embedded.md says


def test_the_commands_are_those_that_the_stages_take() -> None:
    for epochs in (0, 3):
        for run, _ in read_zoo_plan(config(quality=["1..8"], epochs=epochs, rdoq="full")):
            train = parse(TrainConfig, [*shlex.split(run.train), "--save_dir", "X"], prog="train/main.py")
            kind = run.settings["kind"]
            assert train.initialisation == ("calibrated" if kind == "relu" else "none") and train.contexts
            assert train.epochs == (0 if kind == "gdn" else epochs) and f"q{train.quality}" == run.settings["teacher"]
            for title, arguments in run.evaluate.items():
                flags = parse(EvaluateConfig, shlex.split(arguments), prog="evaluate/run.py")
                assert flags.contexts == ("plain" not in title) and flags.rdoq == ("full" if "rdoq" in title else "off")
            assert bool(run.export) == (kind == "relu")
            if run.export:
                parse(ExportConfig, [*shlex.split(run.export), "--out", "X"], prog="export/onnx_parts.py")


def test_each_part_has_runs_and_rows_of_its_own() -> None:
    settings = config(replace_parts=["decoder", "all"], rdoq="full")
    runs = {run.name: run for run, _ in read_zoo_plan(settings)}
    assert list(runs) == ["gdn-q1", "relu-q1", "relu-decoder-q1"]
    train = parse(TrainConfig, [*shlex.split(runs["relu-decoder-q1"].train), "--save_dir", "X"], prog="train/main.py")
    assert train.replace_parts == "decoder" and train.initialisation == "calibrated"
    assert runs["relu-decoder-q1"].export and list(runs["relu-decoder-q1"].evaluate) == [
        "val-contexts", "val-rdoq", "images-contexts", "images-rdoq"
    ]  # fmt: skip
    assert [row.title for row in settings.rows[2:]] == [
        "ReLU with contexts",
        "ReLU in the decoder, with contexts",
        "ReLU with contexts and RDOQ",
        "ReLU in the decoder, with contexts and RDOQ",
    ]


def test_the_table_has_each_codec_and_bjontegaards_rates() -> None:
    rows = config(rdoq="fast").rows
    text = zoo_table(results(4), rows)
    assert sum(line.startswith("| q") for line in text.splitlines()) == 16
    line = next(line for line in text.splitlines() if line.startswith("| q2") and "RDOQ" in line)
    assert "27.80" in line and "0.180" in line
    relu = [(0.95 * bpp, psnr_db - 0.1) for bpp, psnr_db in POINTS.values()]
    for anchor, factor in (("GDN", 1.0), ("GDN with contexts", 0.9)):
        gdn = [(factor * bpp, psnr_db) for bpp, psnr_db in POINTS.values()]
        columns = [[point[place] for point in points] for points in (gdn, relu) for place in (0, 1)]
        percent = bjontegaard.bd_rate(*columns, method="akima", require_matching_points=False, min_overlap=0)
        head, found = (
            next(line for line in text.splitlines() if line.startswith(start)).split("|")
            for start in ("| all rates", "| ReLU with contexts  ")
        )
        place = [cell.strip() for cell in head].index(f"BD-rate to {anchor}, val")
        assert found[place].strip() == f"{percent:+.1f} %"


@pytest.mark.parametrize(
    ("folder", "flags"),
    [("zoo", {"epochs": 2, "rdoq": "full"}), ("wide", {"replace_parts": ["all", "encoder", "decoder"]})],
)
def test_the_tables_of_the_page_are_those_of_the_results_kept(
    folder: str, flags: dict[str, Any], tmp_path: Path
) -> None:
    kept = ROOT / "docs" / folder
    for path in kept.glob("gdn-*.json"):
        (tmp_path / path.stem.removeprefix("gdn-")).touch()
    settings = config(quality=None, teachers=tmp_path, **flags)
    runs = [run for run, _ in read_zoo_plan(settings)]
    found = {run.name: made for run in runs if (made := Study(kept, {}).result(run))}
    assert found.keys() == {path.stem for path in kept.glob("*.json")} == {run.name for run in runs} and found
    table = zoo_table(found, settings.rows)
    assert (kept / "table.md").read_text() == table
    assert f"<!-- {folder}: starts -->\n{table}" in (ROOT / "docs" / "calibration.md").read_text()


def test_too_few_rates_have_no_bd_rate() -> None:
    assert "BD-rate" not in zoo_table(results(3), config(rdoq="fast").rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.torch
def test_files_of_the_zoo_s_format_are_swapped_compared_and_not_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch
    from compressai.models import FactorizedPrior

    torch.manual_seed(0)
    (tmp_path / "teachers").mkdir()
    torch.save(FactorizedPrior(4, 6).state_dict(), tmp_path / "teachers" / "small-0.01.pth.tar")
    write_shards(tmp_path / "shards", "train", (16,), side=176)
    write_shards(tmp_path / "shards", "val", (2,), side=176)
    (tmp_path / "images").mkdir()
    Image.effect_noise((180, 176), 60).convert("RGB").save(tmp_path / "images" / "one.png")
    folders = [f"--{name}={tmp_path / name}" for name in ("shards", "images", "work", "out", "teachers")]
    assert main([*folders, "--epochs", "1", "--rdoq", "fast"]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert sum(line.startswith("| small-0.01.pth.tar") for line in text.splitlines()) == 5
    assert (tmp_path / "work" / "relu-small-0.01.pth.tar" / "onnx" / "decoder.onnx").exists()
    capfd.readouterr()
    torch.save({"state_dict": {}}, tmp_path / "teachers" / "small-0.02.pth.tar")
    assert main([*folders, "--epochs", "1", "--rdoq", "fast"]) == 1
    printed = capfd.readouterr()
    assert "gdn-small-0.02.pth.tar" in printed.err and "Traceback" not in printed.err
    assert "epoch 1" not in printed.out + printed.err  # the first codec was not trained again
