"""Hostile and damaged files: each is refused in one line, before memory is taken. No code from them runs."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relic.codec.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import finished_model, read_codec
from relic.errors import InputError

ARCHITECTURE = Architecture((4, 6), "none")


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """What a good checkpoint holds."""
    save_checkpoint(tmp_path / "good.pt", Checkpoint(ARCHITECTURE, build_model(ARCHITECTURE).state_dict()))
    loaded: dict[str, Any] = torch.load(tmp_path / "good.pt", weights_only=True)
    return loaded


def refusal(path: Path) -> str:
    """The message that refuses the file at every door."""
    with pytest.raises(InputError) as caught:
        finished_model(read_codec(path, flag="--checkpoint"), f"--checkpoint {path}")
    message = str(caught.value)
    assert message.startswith(f"--checkpoint {path}: ") and "\n" not in message and len(message) < 800
    return message


class Calls:
    """A pickle that calls `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Calls(bytearray, 10**12), "bytearray"),
        (Calls(torch.FloatTensor, 10**12), "FloatTensor"),
        (Calls(torch.Tensor, 10**12), "torch._tensor.Tensor|torch.Tensor"),
        (Calls(os.getcwd), "getcwd"),
        (Calls(print, "run"), "print"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_cannot_call_what_takes_memory(tmp_path: Path, value: Any, named: str, zipped: bool) -> None:
    torch.save({"state_dict": {}, "more": value}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "a.pt")
    assert "refused, it holds more than tensors and plain values" in message and "save the weights alone" in message
    assert any(name in message for name in named.split("|"))


def test_compressed_records_are_refused_before_they_are_unpacked(tmp_path: Path, content: dict[str, Any]) -> None:
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as packed:
        for name in good.namelist():
            packed.writestr(name, good.read(name))
    assert "its records are compressed" in refusal(tmp_path / "a.pt")


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path, content: dict[str, Any]) -> None:
    data = (tmp_path / "good.pt").read_bytes()
    place = data.index(content["model"]["g_a.2.weight"].numpy().tobytes()) + 1
    (tmp_path / "a.pt").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert "checksum" in refusal(tmp_path / "a.pt")


def test_a_storage_larger_than_its_record_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as cut:
        for name in good.namelist():
            cut.writestr(name, good.read(name)[:4] if "/data/" in name else good.read(name))
    assert refusal(path).endswith("not a checkpoint, or a damaged one; get it again, or name another")


def test_any_damage_of_the_pickle_is_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        records = {name: good.read(name) for name in good.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    whole = records[name]
    spliced = (
        b"",
        b"(",
        b"}",
        b"]",
        b"R",
        b"b",
        b"\x8a\xff",
        b"J\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"q\xff",
        b".",
    )
    for number in range(0, 400, 7):
        piece = spliced[number % len(spliced)]
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as damaged:
            for each, data in records.items():
                damaged.writestr(each, whole[:number] + piece + whole[number + 3 :] if each == name else data)
        try:
            finished_model(read_codec(tmp_path / "a.pt", flag="--checkpoint"), f"--checkpoint {tmp_path / 'a.pt'}")
        except InputError as error:
            assert str(error).startswith(f"--checkpoint {tmp_path / 'a.pt'}: ") and "\n" not in str(error)


def test_a_pickle_after_the_first_is_looked_at_too(tmp_path: Path) -> None:
    """A file of torch before 1.6 consists of several pickles."""
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {}, Calls(bytearray, 10**12))
    (tmp_path / "a.pt").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    assert "bytearray" in refusal(tmp_path / "a.pt")


def test_a_pickle_with_a_zip_behind_it_is_looked_at_as_torch_reads_it(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(
        {"state_dict": {}, "more": Calls(bytearray, 10**12)}, tmp_path / "b", _use_new_zipfile_serialization=False
    )
    (tmp_path / "a.pt").write_bytes((tmp_path / "b").read_bytes() + (tmp_path / "good.pt").read_bytes())
    assert zipfile.is_zipfile(tmp_path / "a.pt")
    assert "bytearray" in refusal(tmp_path / "a.pt")


def test_a_file_of_torch_before_1_6_is_read_and_holds_what_it_claims(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert load_checkpoint(path).model.keys() == content["model"].keys()
    torch.save({"state_dict": {"g_a.0.weight": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    claimed = b"K\x00M\xe8\x03\x85"  # offset 0, size (1000,)
    assert data.count(claimed) == 1
    path.write_bytes(data.replace(claimed, b"K\x00J\x00\x00\x10\x00\x85"))
    refusal(path)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    assert "not a file" in refusal(tmp_path / "a.pt")
    assert "not a file" in refusal(tmp_path)


def bomb() -> list[Any]:
    """A list that stands for 2^60 values."""
    values: list[Any] = [1]
    for _ in range(60):
        values = [values, values]
    return values


@pytest.mark.parametrize("value", [None, -1, 10**4000, float("nan"), "x" * 10**6, "\x1b[31m\n", bomb(), torch.ones(2)])
@pytest.mark.parametrize("field", ["version", "architecture", "model", "swap_init", "config", "metrics", "fingerprint"])
def test_a_field_of_any_type_is_one_line(tmp_path: Path, content: dict[str, Any], field: str, value: Any) -> None:
    torch.save({**content, field: value}, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")
    for inner in ("channels", "replaced", "name"):
        torch.save({**content, "architecture": {**content["architecture"], inner: value}}, tmp_path / "a.pt")
        refusal(tmp_path / "a.pt")
    torch.save({**content, "metrics": {"a": [value]}}, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("value", ["x" * 10**6, bomb(), torch.ones(2), {}], ids=["long", "bomb", "tensor", "dict"])
def test_a_flag_that_no_report_can_show_is_left_out(tmp_path: Path, content: dict[str, Any], value: Any) -> None:
    torch.save({**content, "config": {"a": value, "seed": 1}}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").config == {"seed": 1}


def test_plain_config_and_metrics_are_kept(tmp_path: Path, content: dict[str, Any]) -> None:
    fields = {
        "config": {"lr": 1e-3, "seed": 4, "amp": True, "resume": None, "shards": "s"},
        "metrics": {"psnr_db": 30.0},
    }
    torch.save({**content, **fields}, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.config == fields["config"] and loaded.metrics == fields["metrics"]


@pytest.mark.parametrize(
    "channels", [(12000, 12000), (4, 4097), (0, 6), (-4, 6), (4.0, 6), (True, 6), (float("inf"), 6)]
)
def test_sizes_are_compared_before_a_model_is_built(
    tmp_path: Path, content: dict[str, Any], channels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**content, "architecture": {**content["architecture"], "channels": channels}}, tmp_path / "a.pt")
    monkeypatch.setattr("relic.codec.checkpoint.build_model", lambda _: pytest.fail("built"))
    assert "from 1 to 4096" in refusal(tmp_path / "a.pt")


def test_channels_that_the_tensors_do_not_have_build_nothing(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**content, "architecture": {**content["architecture"], "channels": (4096, 4096)}}, tmp_path / "a.pt")
    monkeypatch.setattr("relic.codec.checkpoint.build_model", lambda _: pytest.fail("built"))
    assert "has another shape, 6x1x3 instead of 4096x1x3" in refusal(tmp_path / "a.pt")
    wide = {"g_a.0.weight": torch.zeros(1).expand(4000, 3, 5, 5), "g_a.6.weight": torch.zeros(1).expand(4000, 3, 5, 5)}
    torch.save({"state_dict": wide}, tmp_path / "a.pt")
    assert "g_a.0.weight is larger than its data" in refusal(tmp_path / "a.pt")
    torch.save(
        {"state_dict": {"g_a.0.weight": torch.zeros(5000, 1), "g_a.6.weight": torch.zeros(1)}}, tmp_path / "a.pt"
    )
    assert "5000 and 1 channels; 1 to 4096 can be built" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("g_a.2.weight", lambda t: t.to(torch.complex64), "complex64"),
        ("g_a.2.weight", lambda t: t.to_sparse(), "more than tensors|no dense tensor"),
        ("g_a.2.weight", lambda t: t.to("meta"), "more than tensors|meta"),
        ("g_a.2.weight", lambda t: t.int(), "torch.int32, not floats"),
        ("g_a.2.weight", lambda t: t[:2], "another shape"),
        ("g_a.2.weight", lambda t: t[0, 0, 0, 0], "another shape, one number instead of 4x4x5x5"),
        ("g_a.2.weight", lambda t: t * float("nan"), "not finite"),
        ("g_a.2.weight", lambda t: t.double() * 0 + 1e300, "not finite"),
        ("g_s.1.beta", lambda t: t * float("inf"), "not finite"),
        ("entropy_bottleneck.matrices.0", lambda t: t * float("nan"), "not finite"),
        ("entropy_bottleneck.quantiles", lambda t: t * float("-inf"), "not finite"),
        ("entropy_bottleneck.quantiles", lambda t: t * 1e7, "must rise, within 4096 of the median"),
        ("entropy_bottleneck.quantiles", lambda t: t.flip(2), "must rise"),
        ("entropy_bottleneck.quantiles", lambda t: t + 1e6, "median within 65536 of 0"),
    ],
)
@pytest.mark.parametrize("loss_type", ["recon", "rd"])
def test_tensors_that_no_codec_has_are_named(
    tmp_path: Path, content: dict[str, Any], name: str, change: Callable[[Any], Any], said: str, loss_type: str
) -> None:
    model = {**content["model"], name: change(content["model"][name])}
    torch.save({**content, "model": model, "loss_type": loss_type}, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert any(part in message for part in said.split("|")), message


@pytest.mark.parametrize("name", [5, "a\nb", "x" * 999, "g_a.7.weight"])
def test_names_that_no_codec_has_are_refused(tmp_path: Path, content: dict[str, Any], name: Any) -> None:
    torch.save({**content, "model": {**content["model"], name: torch.zeros(1)}}, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert "no short text" in message or "g_a.7.weight is unknown" in message
