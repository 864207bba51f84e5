"""A tiny run of the export benchmark: tests the form of its results, not the speed."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks._export.timed_parts import timed_parts
from benchmarks.export import ExportBenchmarkConfig, main
from relic.errors import InputError
from relic.onnx.sessions import open_session

PARTS = ("encoder", "decoder")


def test_every_part_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--channels", "4,6", "--sizes", "32x16,48x48", "--rounds", "1", "--upsample", "deconv5"]
    outputs = ["--json", str(tmp_path / "export.json"), "--plot", str(tmp_path / "export.png")]
    assert main([*flags, *outputs]) == 0
    found = json.loads((tmp_path / "export.json").read_text())
    names = {
        "_".join(key)
        for key in itertools.product(("gdn", "relu"), ("fp32", "int8"), PARTS, ("32x16", "48x48"), ("1", "all"))
    }
    assert names <= found.keys() and all(found[name] > 0 for name in names)
    assert found["codec_import_seconds"] > 0 and found["machine"]["cores"] >= 1
    assert found["ratios"]["relu_over_gdn_encoder_48x48_1"] == pytest.approx(
        found["gdn_fp32_encoder_48x48_1"] / found["relu_fp32_encoder_48x48_1"]
    )
    assert found["ratios"]["int8_over_fp32_decoder_32x16_all"] == pytest.approx(
        found["relu_fp32_decoder_32x16_all"] / found["relu_int8_decoder_32x16_all"]
    )
    said = capsys.readouterr().out
    assert "encoder 48x48, threads: all" in said and "no INT8 kernel for transposed convolutions" in said
    with Image.open(tmp_path / "export.png") as picture:
        assert picture.format == "PNG"


def test_what_is_timed_is_what_the_names_say() -> None:
    parts = {(one.codec, one.precision, one.part): one for one in timed_parts((4, 6), "subpixel")}
    assert len(parts) == 8
    for (codec, precision, part), one in parts.items():
        operators = {node.op_type for node in one.model.graph.node}
        assert ("Sqrt" in operators) is (codec == "gdn")
        assert ("QuantizeLinear" in operators) is (precision == "int8")
        assert ("DepthToSpace" in operators) is (part == "decoder")
        fed = one.input_for(48, 32, 6)
        session = open_session(one.model.SerializeToString())
        (out,) = session.run(None, {session.get_inputs()[0].name: fed})
        assert (fed.shape, out.shape)[:: 1 if part == "encoder" else -1] == ((1, 3, 32, 48), (1, 6, 2, 3))
        assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"channels": "128"}, "--channels 128"),
        ({"sizes": "224x224,100x16"}, "--sizes 100x16"),
        ({"sizes": "224"}, "--sizes 224"),
        ({"rounds": 0}, "--rounds 0"),
    ],
)
def test_contradictions_name_the_flag(flags: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ExportBenchmarkConfig(**flags)  # type: ignore[arg-type]
