"""The plan and the table of the INT8 study."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from relic.cli import parse
from relic.errors import InputError
from studies import int8
from studies.int8 import _rates_of, bd_rate_of, beside_gdn, loss_of, noise_table, read_int8_plan, table
from train.config import TrainConfig


def result(kind: str, rate: str, bpp: float, psnr_db: float, *, loss_db: float, more: float) -> dict[str, Any]:
    figures = [{"psnr_db": psnr_db, "bpp_real": bpp}, {"psnr_db": psnr_db - loss_db, "bpp_real": bpp * (1 + more)}]
    return {"settings": {"kind": kind, "rate": rate}, "evaluations": {"val": {"figures": figures}}}


POINTS = {"0.0092": (0.1, 27.0), "0.0046": (0.2, 29.0), "0.0023": (0.35, 31.0), "0.0012": (0.6, 33.0)}


def results(kind: str, *, loss_db: float, more: float, rates: int = 4) -> dict[str, dict[str, Any]]:
    return {
        f"{kind}-{rate}": result(kind, rate, *point, loss_db=loss_db, more=more)
        for rate, point in list(POINTS.items())[:rates]
    }


def test_every_command_of_the_plan_is_one_that_the_stages_take() -> None:
    plan = read_int8_plan(2, list(POINTS))
    names = [planned.run.name for planned in plan]
    assert len(names) == len(set(names)) == 48
    anchors = [planned for planned in plan if planned.run.settings["kind"] == "gdn"]
    assert len(anchors) == 4
    for run, _ in anchors:
        assert not run.train and not run.export
        for arguments in run.evaluate.values():
            assert not parse(EvaluateConfig, [*shlex.split(arguments), "--out", "x"], prog="evaluate/run.py").contexts
    for run, before in (planned for planned in plan if planned not in anchors):
        for training in [*before, *([run] if run.train else [])]:
            values = parse(TrainConfig, shlex.split(training.train), prog="train/main.py")
            assert values.qat == ("--qat true" in training.train) and values.epochs == 2
        exported = parse(ExportConfig, [*shlex.split(run.export), "--out", "onnx"], prog="export/onnx_parts.py")
        trained = parse(TrainConfig, shlex.split(before[-1].train), prog="train/main.py")
        assert exported.int8_parts == trained.replace_parts
        for arguments in run.evaluate.values():  # a codec of QAT, too, is compared with the float one before it
            assert f"--checkpoint WORK/{before[-1].name}/last.pt --onnx WORK/{run.name}/onnx" in arguments
    assert [each.name for each in plan[-1].before] == ["float-0.0012"]
    tuned = next(run for run, _ in plan if run.name == "qat-0.0012")
    assert "--pretrained WORK/float-0.0012/last.pt" in tuned.train


def test_what_is_in_8_bits_as_a_whole_comes_first_at_all_rates() -> None:
    kinds = [planned.run.settings["kind"] for planned in read_int8_plan(1, list(POINTS))]
    assert set(kinds[:16]) == {"gdn", "percentile", "learned", "qat"}
    assert {kind.split("-")[0] for kind in kinds[16:40]} == {"encoder", "decoder"}


def test_the_rates_are_those_of_the_teachers(tmp_path: Path) -> None:
    for name in ("teacher-0.008.pt", "teacher-0.0005.pt", "start-0.2.pt"):
        (tmp_path / name).touch()
    rates = _rates_of(tmp_path)
    plan = read_int8_plan(1, rates)
    assert {run.settings["rate"] for run, _ in plan} == {"0.008", "0.0005"}
    for run, before in plan:
        teacher = f"TEACHERS/teacher-{run.settings['rate']}.pt "
        if run.settings["kind"] == "gdn":
            assert not before and f"--checkpoint {teacher}" in run.evaluate["val"]
        else:
            assert f"--pretrained {teacher}" in before[0].train and len(before) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no teacher-RATE"):
        _rates_of(tmp_path / "empty")


def test_more_bits_for_the_same_pixels_are_the_bd_rate() -> None:
    found = bd_rate_of(list(results("learned", loss_db=0, more=0.05).values()), "val")
    assert found == pytest.approx(5, abs=0.01)


def test_too_few_rates_have_no_bd_rate() -> None:
    assert bd_rate_of(list(results("learned", loss_db=0, more=0.05, rates=3).values()), "val") is None


def test_the_table_has_a_row_per_kind_and_leaves_out_what_is_missing() -> None:
    found = results("percentile", loss_db=0.5, more=-0.01) | results("qat", loss_db=0.1, more=0.002, rates=1)
    loss = loss_of(found["qat-0.0092"], "val")
    assert loss.psnr_db == pytest.approx(0.1) and loss.bpp_change == pytest.approx(0.002)
    head, _, percentile, qat = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table(found).splitlines())
    assert (head[0], percentile[0]) == ("quantized by", "percentile")
    assert percentile[1:5] == ["-0.50 dB, -1.0 %"] * 4 and percentile[5].startswith("+")
    assert qat == ["qat", "-0.10 dB, +0.2 %", "", "", "", ""]


def test_the_noise_of_each_layer_stands_beside_that_of_other_kinds() -> None:
    found = results("percentile", loss_db=0.5, more=0) | results("learned", loss_db=0.1, more=0)
    assert noise_table(found) == "", "not all kinds are there"
    found |= results("qat", loss_db=0.1, more=0)
    for number, kind in enumerate(("percentile", "learned", "qat")):
        nodes = {"input": 31.24, "/g_s/g_s.0/activation/Relu": 47.3}
        layers = [{"part": "decoder", "node": node, "sqnr_db": db + number} for node, db in nodes.items()]
        found[f"{kind}-0.0046"]["layers"] = layers
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in noise_table(found).splitlines())
    assert head[2:] == ["percentile, dB", "learned, dB", "qat, dB"]
    assert rows == [["decoder", "input", "31.2", "32.2", "33.2"], ["decoder", "g_s.0 Relu", "47.3", "48.3", "49.3"]]


def anchor(*, more: float) -> dict[str, dict[str, Any]]:
    """GDN codecs of the same PSNR as the float ReLU codecs of `results`."""
    found = results("gdn", loss_db=0, more=0)
    for name, (bpp, psnr_db) in zip(found, POINTS.values(), strict=True):
        found[name]["evaluations"]["val"]["figures"] = [{"psnr_db": psnr_db, "bpp_real": bpp * (1 + more)}]
    return found


def test_the_codecs_stand_beside_gdn() -> None:
    found = (
        anchor(more=0.1) | results("percentile", loss_db=0, more=0.1) | results("qat", loss_db=0, more=0.21, rates=3)
    )
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in beside_gdn(found).splitlines())
    assert head[-1] == "BD-rate, val" and len(head) == 6
    gdn, relu, percentile, learned, qat = rows
    assert gdn[1:] == ["27.00 dB, 0.1100", "29.00 dB, 0.2200", "31.00 dB, 0.3850", "33.00 dB, 0.6600", ""]
    assert relu[1] == "27.00 dB, 0.1000" and relu[-1] == "-9.1 %"
    assert percentile[1] == "27.00 dB, 0.1100" and percentile[-1] in ("+0.0 %", "-0.0 %")
    assert learned[1:] == [""] * 5
    assert qat[1] == "27.00 dB, 0.1210" and qat[-1] == "", "three rates are too few"
    assert beside_gdn(results("percentile", loss_db=0, more=0)) == ""
    assert "gdn" not in table(found)


def test_one_command_fills_the_tables_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "int8.md"
    page.write_text(int8._PAGE.read_text())
    monkeypatch.setattr(int8, "_PAGE", page)
    found = anchor(more=0.1) | results("percentile", loss_db=0.52, more=0)
    int8._fill(found)
    int8._fill(found)
    text = page.read_text()
    assert text.count(table(found)) == text.count(beside_gdn(found)) == 1
    assert "-0.52 dB, +0.0 %" in text
