"""Context tables of checkpoints: counted on the training crops, by the command and at the end of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from relic.bitstream.coder import encode_symbols
from relic.bitstream.counting import count_contexts
from relic.codec.checkpoint import load_checkpoint, save_checkpoint
from relic.codec.coding import analyse, tables_of
from relic.codec.pretrained import load_codec
from relic.errors import InputError
from tests.bitstream.strategies import with_contexts
from tests.conftest import write_shards
from tests.train.runs import Run, assert_equal, tiny
from train.count_contexts import main
from train.main import main as train


def test_the_command_counts_the_symbols_of_the_training_crops(tmp_path: Path) -> None:
    pixels = write_shards(tmp_path / "shards", counts=(9, 3), side=128)
    arguments = ["--checkpoint", "embedded", "--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "a.pt")]
    assert main([*arguments, "--device", "cpu"]) == 0
    before, after = load_codec("embedded", quality=1, channels=None), load_checkpoint(tmp_path / "a.pt")
    assert_equal(before.model, after.model)
    assert (after.config, after.metrics, after.loss_type) == (before.config, before.metrics, before.loss_type)

    model = before.build()
    tables = tables_of(model)
    crops = torch.from_numpy(np.stack(list(pixels.values()))).permute(0, 3, 1, 2).float() / 255
    symbols = np.concatenate([analyse(model, crop[None]) for crop in crops])
    expected = count_contexts(symbols, tables)
    assert expected is not None and after.contexts is not None
    assert after.contexts.digest == expected.digest
    plain, real = (
        sum(len(encode_symbols(image, one)) for image in symbols)
        for one in (tables, replace(tables, contexts=expected))
    )
    assert real < 0.9 * plain


def test_every_checkpoint_of_a_run_gets_contexts_for_its_own_weights(
    run: Run, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.contexts.count_contexts", lambda symbols, tables: None)
    assert run("--epochs", "0") == 0
    folder = tmp_path / "checkpoints"
    bare = {path.name: load_checkpoint(path) for path in folder.glob("*.pt")}
    assert set(bare) == {"last.pt", "best_loss.pt", "best_msssim.pt"}
    assert all(one.contexts is None for one in bare.values())

    seen: list[int] = []
    known = with_contexts(6, seed=0).contexts

    def count(symbols: NDArray[Any], tables: Any) -> Any:
        seen.append(len(symbols))
        return known

    monkeypatch.setattr("train.contexts.count_contexts", count)
    assert run("--epochs", "0", "--overwrite") == 0
    assert seen == [12]  # the weights of all three are equal, so the 12 crops are counted once
    for path in folder.glob("*.pt"):
        found = load_checkpoint(path)
        assert known is not None and found.contexts is not None and found.contexts.digest == known.digest
        assert_equal(found.model, bare[path.name].model)
        assert found.metrics == bare[path.name].metrics
    assert load_checkpoint(folder / "last.pt").training is not None

    # Contexts are those of the weights: a run that starts from them has its own or none.
    flags = tiny(
        crops, tmp_path / "next", "--pretrained", str(folder / "last.pt"), "--epochs", "0", "--contexts", "false"
    )
    place = flags.index("--channels")
    assert train(flags[:place] + flags[place + 2 :]) == 0
    assert load_checkpoint(tmp_path / "next" / "checkpoints" / "last.pt").contexts is None


def test_wrong_paths_are_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "shards", counts=(1,))
    good = {"--checkpoint": "embedded", "--shards": str(tmp_path / "shards"), "--out": str(tmp_path / "a.pt")}
    for flag, value in (("--checkpoint", "gone.pt"), ("--out", str(tmp_path)), ("--shards", "gone")):
        assert main([word for pair in ({**good, flag: value}).items() for word in pair]) == 2
        assert flag in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()


def test_a_checkpoint_keeps_its_contexts(tmp_path: Path) -> None:
    codec = load_codec("embedded", quality=1, channels=None)
    assert codec.contexts is not None
    save_checkpoint(tmp_path / "a.pt", codec)
    found = load_checkpoint(tmp_path / "a.pt").contexts
    assert found is not None and found.digest == codec.contexts.digest
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    for damaged in ("text", {}, {**content["contexts"], "width": torch.zeros(3)}, {"channel": torch.zeros(1).int()}):
        torch.save({**content, "contexts": damaged}, tmp_path / "b.pt")
        with pytest.raises(InputError, match=r"not a whole checkpoint .*; get it again, or name another$"):
            load_checkpoint(tmp_path / "b.pt")
    torch.save({**content, "architecture": {**content["architecture"], "channels": (32, 40)}}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="contexts for 48 channels instead of 40"):
        load_checkpoint(tmp_path / "b.pt")
