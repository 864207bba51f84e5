"""Wrong command lines: one line that names the flag or path, the right exit code, and nothing changed on disk."""

import dataclasses
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evaluate.run
import export.onnx_parts
import prep.make_shards
import relic
import train.main
from evaluate.config import EvaluateConfig
from export.config import ExportConfig
from prep.config import PrepConfig
from relic.errors import RefusedError
from relic.launch import launch_name
from tests.conftest import set_ranks, write_shards
from train.config import TrainConfig
from train.plan import is_restarted, make_plan

pytestmark = pytest.mark.commands

ROOT = Path(__file__).resolve().parents[1]
CLIS = ["prep/make_shards.py", "prep/verify_shards.py", "prep/upload_shards.py", "train/main.py", "evaluate/run.py",
        "export/onnx_parts.py", "export/codec.py", "train/count_contexts.py", "samples/build.py",
        "benchmarks/loader.py", "benchmarks/train_step.py", "benchmarks/export.py", "benchmarks/prep.py",
        "benchmarks/remote.py", "benchmarks/evaluate.py",
        "benchmarks/gpu.py",
        "studies/calibration.py", "studies/zoo.py"]  # fmt: skip


def outcome(main: Callable[..., int], *argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as end:
        return int(end.code or 0)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert len(lines) == 1, error
    return lines[0]


@pytest.fixture
def small_crops(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write_shards(tmp_path / "small", split, (6,), side=128)
    return tmp_path / "small"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quality", "0"], "--quality 0: must be 1 to 8"),
        (["--quality", "x"], "--quality x: expected a whole number"),
        (["--batch_size", "0"], "--batch_size 0: must be 1 or more"),
        (["--batch_size", "99"], "--batch_size 99: .* holds only 12 train samples"),
        (["--replace_parts", "foo"], "--replace_parts foo: choose from encoder, decoder, all, none"),
        (["--replace_parts", "none"], "--train_scope replaced.hyper: --replace_parts none needs --train_scope all"),
        (["--amp_warmup_steps", "5"], "--amp_warmup_steps is gone: use --lr_warmup_steps"),
        (["--use_prepared", "true"], "--use_prepared is gone: .*--shards"),
        (["--coco_dir", "x"], "--coco_dir is gone: .*make_shards"),
        (["--num_workers=3"], "--num_workers is gone: .*--decode_threads"),
        (["--nonsense", "5"], "unknown argument --nonsense"),
        (["--alpha_l1", "1.5"], "--alpha_l1 1.5: must be 0 to 1"),
        (["--lr", "0"], "--lr 0.0: must be over 0"),
        (["--channels", "8"], "--channels 8: expected two whole numbers"),
        (["--channels", "8,12"], "--channels: needs --pretrained none"),
        (["--sched", "onecycle", "--lr_warmup_steps", "3"], "--lr_warmup_steps: onecycle has its own"),
        (["--pretrained", "missing.pt"], "--pretrained missing.pt: no such file"),
        (["--resume", "missing.pt"], "--resume missing.pt: no such file"),
        (["--val_shards", "missing"], "--val_shards missing: no such folder"),
        (["--local_fp32", "custom"], "--local_fp32 custom: name classes with --local_fp32_custom"),
        (["--config", "missing.yaml"], "--config.*missing.yaml"),
        (["--calib_images", "3"], "--calib_images 3: must be 4 or more"),
        (
            ["--batch_size", "4", "--calib_images", "13"],
            "--calib_images 13: .* holds only 12 train samples; use fewer, or --swap_init naive",
        ),
        (
            ["--replace_parts", "none", "--train_scope", "all", "--swap_init", "calibrated"],
            "--swap_init calibrated: --replace_parts none swaps nothing",
        ),
        (["--distill", "0.3"], "--distill is gone: .*--precondition"),
        (["--swap_init", "clever"], "--swap_init clever: choose from calibrated, naive"),
    ],
)
def test_training_flags(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    code = outcome(train.main.main, "--shards", str(crops), "--save_dir", str(tmp_path / "out"), *flags)
    assert code == 2
    line = one_line(capsys)
    assert re.search(said, line), line
    assert not (tmp_path / "out").exists()


def test_training_folders(small_crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, said in (
        ("missing", "missing: no such folder"),
        ("empty", "no train.json here"),
        ("small", "128x128; MS-SSIM needs sides over 160"),
    ):
        assert outcome(train.main.main, "--shards", str(tmp_path / folder)) == 2
        assert said in one_line(capsys)
    assert outcome(train.main.main) == 2
    assert "missing --shards" in one_line(capsys)


def test_a_folder_with_a_run_in_it_is_not_overwritten(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.pt").write_bytes(b"precious")
    assert outcome(train.main.main, "--shards", str(crops), "--save_dir", str(tmp_path)) == 2
    assert "holds a run; --resume auto continues it, --overwrite starts a new one" in one_line(capsys)
    assert (tmp_path / "last.pt").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (prep.make_shards.main, ["--coco_dir", "missing"]),
        (evaluate.run.main, ["--checkpoint", "missing.pt", "--images", "."]),
        (export.onnx_parts.main, ["--ckpt", "missing.pt", "--part", "all", "--out", "x"]),
    ],
)
def test_missing_paths_are_named(
    capsys: pytest.CaptureFixture[str], main: Callable[..., int], flags: list[str]
) -> None:
    assert outcome(main, *flags) in (1, 2)
    assert "missing" in one_line(capsys)


def children_seconds() -> float:
    """Processor time of finished child processes, which does not depend on the load of the machine."""
    return os.times().children_user + os.times().children_system


@pytest.mark.parametrize("cli", CLIS)
def test_help_answers_within_a_second_from_anywhere(tmp_path: Path, cli: str) -> None:
    spent = []
    for _ in range(3):  # the machine may be busy, so take the fastest of three
        before = children_seconds()
        done = subprocess.run([sys.executable, ROOT / cli, "--help"], cwd=tmp_path, capture_output=True, check=False)
        spent.append(children_seconds() - before)
        assert done.returncode == 0 and b"usage" in done.stdout
    assert min(spent) < 1


@pytest.mark.parametrize("config", [PrepConfig, TrainConfig, EvaluateConfig, ExportConfig])
def test_each_flag_is_in_one_group_of_the_help(config: Any) -> None:
    grouped = [name for names in config.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(config))


def test_the_help_shows_choices_defaults_and_no_types_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(train.main.main, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: train/main.py --shards TEXT [--flag value ...]",
        "precision: --amp [{auto,true,false}] Mixed precision",
        "--quality N ",
        "(default: 8)",
        "--replace_parts {encoder,decoder,all,none} ",
        "(default: encoder)",
    ):
        assert part in said
    assert all(said.count(f" {title}: --") == 1 for title in TrainConfig.GROUPS)
    assert not re.search(r"<class|Literal|Optional|Union|PosixPath|None", said)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(train.main.main, "--version") == 0
    assert capsys.readouterr().out == f"relic {relic.__version__}\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "nan"], "--lr nan: expected a number"),
        (["--epochs", "2.0"], "--epochs 2.0: expected a whole number"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--epoch", "2"], "unknown argument --epoch 2"),
        (["--amp", "maybe"], "--amp maybe: choose from auto, true, false"),
        (["--wandb", "1"], "--wandb 1: expected true or false"),
        (["--seed="], "--seed has an empty value"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_values_are_checked_by_type(
    crops: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert outcome(train.main.main, "--shards", str(crops), *flags) == 2
    assert said in one_line(capsys)


def test_the_same_as_a_module(tmp_path: Path) -> None:
    for module in ("prep.make_shards", "train.main", "evaluate.run", "export.onnx_parts", "export.codec"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, module


def test_print_config_gives_a_config_back(crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--shards", str(crops), "--lr", "0.003", "--amp", "--deterministic", "--seed", "4"]
    assert outcome(train.main.main, *flags, "--print_config") == 0
    printed = capsys.readouterr().out
    assert "lr: 0.003" in printed and "deterministic: true" in printed and "amp: true" in printed
    (tmp_path / "run.yaml").write_text(printed)
    assert outcome(train.main.main, "--config", str(tmp_path / "run.yaml"), "--seed", "5", "--print_config") == 0
    assert capsys.readouterr().out == printed.replace("seed: 4", "seed: 5")


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("lr: [1, 2\n", [], r"--config run\.yaml: .*line 2"),
        ("lrr: 3\n", [], r"--config run\.yaml: unknown flag lrr"),
        ("lr: abc\n", [], r"--config run\.yaml: --lr abc: expected a number"),
        ("quality: 99\n", [], r"--config run\.yaml: --quality 99: must be 1 to 8"),
        ("- a\n", [], r"--config run\.yaml: Unexpected config"),
        ("epochs: 3.0\n", [], r"--config run\.yaml: --epochs 3\.0: expected a whole number"),
        ("epochs: true\n", [], r"--config run\.yaml: --epochs true: expected a whole number"),
        ("epochs: null\n", [], r"--config run\.yaml: --epochs null: expected a whole number"),
        ("channels: 3\n", [], r"--config run\.yaml: --channels 3: expected two whole numbers"),
        ("save_dir: [a]\n", [], r"--config run\.yaml: --save_dir \['a'\]: expected a path"),
        ("wandb: 1\n", [], r"--config run\.yaml: --wandb 1: expected true or false"),
        ("lr: 1e-3\n", ["--lr", "abc"], r"error: --lr abc: expected a number"),
        ("lr: 1e-3\n", ["--quality", "99"], r"error: --quality 99: must be 1 to 8"),
    ],
)
def test_what_is_wrong_in_a_config_file_names_the_file(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    text: str, flags: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert outcome(train.main.main, "--shards", str(crops), "--config", "run.yaml", *flags) == 2
    assert re.search(said, one_line(capsys))


def test_the_command_line_overrides_a_config_file_wherever_it_stands(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(f"shards: {crops}\nlr: 1e-3\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("seed: 2\nepochs: 3\namp: yes\n")
    files = [f"--config={tmp_path / 'a.yaml'}", "--config", str(tmp_path / "b.yaml")]
    for flags in (["--epochs", "5", *files], [*files, "--epochs", "4", "--epochs", "5"]):
        assert outcome(train.main.main, *flags, "--print_config") == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert [printed[name] for name in ("lr", "seed", "epochs", "amp")] == [1e-3, 2, 5, True]


def test_what_would_overwrite_or_mix_runs_is_refused(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "last.pt").write_bytes(b"one run")
    (tmp_path / "b" / "best_loss.pt").write_bytes(b"another")
    flags = ["--shards", str(crops), "--save_dir", str(tmp_path / "b")]
    for more in ([], ["--resume", str(tmp_path / "a" / "last.pt")]):
        assert outcome(train.main.main, *flags, *more) == 2
        assert "--save_dir" in one_line(capsys)
    assert (tmp_path / "b" / "best_loss.pt").read_bytes() == b"another"


def test_a_resume_that_cannot_be_is_answered_without_torch(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shards", str(crops), "--save_dir", str(tmp_path), "--batch_size", "6"]
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert outcome(train.main.main, *flags, "--resume", str(tmp_path / "text.pt")) == 2
    assert re.search(r"--resume .*text\.pt: not a checkpoint", one_line(capsys))
    with zipfile.ZipFile(tmp_path / "last.pt", "w"):
        pass
    begun = TrainConfig(shards=str(crops), save_dir=tmp_path, batch_size=4, overwrite=True, swap_init="naive")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun.plain_values()))
    command = [sys.executable, "-X", "importtime", str(ROOT / "train" / "main.py"), *flags, "--resume", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--batch_size 6: the run to resume has 4; keep it" in done.stderr.splitlines()[-1]
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_a_restart_by_torchrun_goes_on_only_with_its_own_run(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last.pt").write_bytes(b"an older run")
    (tmp_path / ".launch").write_text("/logs/job_older")
    set_ranks(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/logs/job_this/attempt_1/0/error.json")
    config = TrainConfig(shards=str(crops), save_dir=tmp_path, batch_size=4)
    with pytest.raises(RefusedError, match="holds a run"):
        make_plan(config)
    (tmp_path / ".launch").write_text("/logs/of_another_machine\n/logs/job_this")
    with zipfile.ZipFile(tmp_path / "last.pt", "w"):  # the format of torch's files
        pass
    assert make_plan(config).resume == tmp_path / "last.pt"
    # A launch with the same run id and address has another folder. `--log-dir /dev/null` leaves the variable empty.
    for report in ("/logs/job_that/attempt_0/0/error.json", "/logs/job/attempt_0/0/error.json", ""):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", report)
        (tmp_path / ".launch").write_text("/logs/job_this\n")
        assert not is_restarted(tmp_path, launch_name())


@pytest.mark.parametrize("flags", [["--save_dir", "FILE/x"], ["--recon_dir", "FILE"], ["--save_dir", ""]])
def test_folders_that_cannot_be_written_are_named_at_once(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    (tmp_path / "FILE").write_text("")
    flags = [flag.replace("FILE", str(tmp_path / "FILE")) for flag in flags]
    assert outcome(train.main.main, "--shards", str(crops), *flags) == 2
    assert flags[0] in one_line(capsys)
