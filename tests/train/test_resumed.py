"""A training state of any type, range or shape is refused in one line, and the folder of the run stays as it was."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relic.errors import InputError
from tests.train.runs import Killed, Run, stop_after, tiny
from train.learner import Learner
from train.main import main
from train.plan import TrainPlan
from train.resumed import check_progress, check_training

FLAGS = ("--epochs", "2", "--sched", "onecycle", "--precondition", "--swap_init", "naive")
VALUES: tuple[Any, ...] = (..., "text", -1, float("nan"), [], {}, torch.full((2, 2), float("nan")))
STEPS = "--save_every_steps", "2"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside dicts, lists and tuples."""
    parts: Any = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        yield (*at, key)
        yield from places(part, (*at, key))


def with_value(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of `tree` with another value at `place`; with Ellipsis, without the entry."""
    if not place:
        return value
    key, *rest = place
    if isinstance(tree, tuple):
        return tuple(with_value(list(tree), place, value))
    changed = copy.copy(tree)
    if value is ... and not rest:
        del changed[key]
    else:
        changed[key] = with_value(tree[key], tuple(rest), value)
    return changed


@pytest.fixture(scope="module")
def stopped_once(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Killed):
            main(tiny(crops, folder, *FLAGS, *STEPS))
    return folder / "checkpoints"


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """last.pt of that run, in the folder of this test, and its content."""
    path = shutil.copytree(stopped_once, tmp_path / "checkpoints") / "last.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    assert content["training"]["progress"]["step"] == 3
    return path, content


def test_every_value_of_a_training_state_is_checked(
    run: Run, stopped: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value in turn is removed or replaced. What the check lets pass must also load."""
    given: list[tuple[dict[str, Any], TrainPlan, Learner, str]] = []
    monkeypatch.setattr("train.trainer.Trainer.run", lambda _: None)
    monkeypatch.setattr("train.build.check_training", lambda *arguments: given.append(arguments))
    assert run(*FLAGS, *STEPS, "--resume", "auto") == 0
    ((training, plan, learner, source),) = given
    check_training(training, plan, learner, source)
    passed = set()
    for place in places(training):
        for value in VALUES:
            changed = with_value(training, place, value)
            try:
                check_progress(changed, source)
                check_training(changed, plan, learner, source)
            except InputError as error:
                assert str(error).startswith(f"{source}: not a whole checkpoint (") and "\n" not in str(error)
                continue
            learner.load_state_dict(changed)
            passed.add((place, str(value)))
    # W&B's name may be any text, a score may be low, and torch adds switches that its older versions lack.
    group = training["optimizer"]["param_groups"][0]
    switches = [name for name, value in group.items() if isinstance(value, bool | None)]
    assert passed == {
        *((("optimizer", "param_groups", 0, name), "Ellipsis") for name in switches),
        (("scaler",), "{}"),
        *(((name,), "-1") for name in ("best_ms_ssim", "best_loss")),
        (("wandb_id",), "text"),
        (("optimizer", "state"), "{}"),
        *((("optimizer", "state", number), "Ellipsis") for number in training["optimizer"]["state"]),
    }


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("progress", "step"), 4),
        (("progress", "epoch"), 7),
        (("progress", "images"), 5),
        (("progress", "images_seen"), 2**60),
        (("progress", "step"), True),
        (("optimizer", "param_groups", 0, "eps"), 1e9),
        (("optimizer", "param_groups", 0, "amsgrad"), True),
        (("optimizer", "param_groups", 0, "betas"), (0.9, 1.0)),
        (("optimizer", "param_groups", 0, "lr"), float("inf")),
        (("optimizer", "state", 0, "step"), torch.tensor(-1.0)),
        (("optimizer", "state", 0, "exp_avg_sq"), None),
        (("optimizer", "state", 99), {}),
        (("schedule", "onecycle"), None),
        (("schedule", "halvings"), 10**9),
        (("scaler",), 3),
        (("random", 0, "torch"), torch.zeros(7, dtype=torch.uint8)),
        (("best_loss",), float("nan")),
        (("wandb_id",), "\x1b[2J"),
    ],
)
def test_values_out_of_range(
    run: Run,
    stopped: tuple[Path, dict[str, Any]],
    place: tuple[Any, ...],
    value: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, content = stopped
    training = content["training"]
    if value is None and place[-1] == "exp_avg_sq":
        value = -training["optimizer"]["state"][0]["exp_avg_sq"] - 1
    if place == ("optimizer", "state", 99):
        changed = copy.deepcopy(training)
        changed["optimizer"]["state"][99] = {}
    else:
        changed = with_value(training, place, value)
    torch.save({**content, "training": changed}, path)
    code = run(*FLAGS, *STEPS, "--resume", "auto")
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "not a whole checkpoint (" in last and "resume from another one" in last


def test_a_diverged_model_is_not_resumed(
    run: Run, stopped: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = stopped
    content["model"]["g_s.2.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, path)
    assert run(*FLAGS, *STEPS, "--resume", "auto") == 2
    assert f"--resume {path}: g_s.2.weight is not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1]\nb: [*a, *a]\n",
        "lr: 2017-99-99\n",
        "[" * 100_000,
        "lr: " + "9" * 5000,
        "\xff\n",
        "seed: 1\nseed: 2\n",
    ],
)
def test_a_damaged_config_file_beside_the_checkpoint_does_not_matter(
    run: Run, stopped: tuple[Path, dict[str, Any]], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stopped
    monkeypatch.setattr("train.trainer.Trainer.run", lambda _: None)
    path.with_name("config.yaml").write_bytes(text.encode("latin-1"))
    assert run(*FLAGS, *STEPS, "--resume", "auto") == 0


@pytest.mark.parametrize("line", ["[]", "3", '{"step": null}', '{"step": []}', "[" * 100_000, '{"step": 1e999}'])
def test_lines_of_metrics_that_are_none_are_cut(
    run: Run, stopped: tuple[Path, dict[str, Any]], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stopped
    monkeypatch.setattr("train.trainer.Trainer.run", lambda _: None)
    records = path.with_name("metrics.jsonl")
    kept = records.read_text()
    records.write_bytes(kept.encode() + line.encode() + b"\n\xff\n")
    assert run(*FLAGS, *STEPS, "--resume", "auto") == 0
    assert records.read_text() == kept
