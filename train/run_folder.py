"""The folder of a run: one run at a time writes to it, and all processes find the same run in it."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from relic.codec.checkpoint import Checkpoint
from relic.distributed import World, gather_to_all
from relic.errors import InputError, RefusedError
from relic.files import atomic_write
from relic.lock import lock
from train.config import TrainConfig
from train.plan import CHECKPOINTS, LAUNCH, TrainPlan, find_run, is_restarted
from train.records import Tracker

_WAIT_SECONDS = 10.0
"""How long a run under torchrun waits for the end of the run in its folder: torchrun may have just restarted it."""


def enter_folder(plan: TrainPlan, world: World, stack: ExitStack) -> tuple[TrainPlan, list[str]]:
    """Lock save_dir until `stack` closes. Returns the plan with what is in it now, and the names of all launches."""
    if world.is_main:
        stack.enter_context(_only_run_in(plan.config.save_dir, _WAIT_SECONDS if plan.launch else 0))
    launches = _find_launches(plan, world)
    return _found_again(plan, launches), list(launches)


@contextmanager
def _only_run_in(save_dir: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the folder's lock. Raises RefusedError if another run holds it.

    Where the file system has no locks, nothing is checked.
    """
    made = not save_dir.exists()
    save_dir.mkdir(parents=True, exist_ok=True)
    try:
        with lock(save_dir, wait_seconds=wait_seconds) as held:
            if not held:
                raise RefusedError(
                    f"--save_dir {save_dir}: another run writes to it; wait for its end, or choose another folder"
                )
            yield
    finally:
        if made:
            with suppress(OSError):  # a run that was refused leaves no empty folder
                save_dir.rmdir()


def _find_launches(plan: TrainPlan, world: World) -> dict[str, bool]:
    """Name of the launch on each machine -> whether it began the run in save_dir. Waits until rank 0 has the lock."""
    own = plan.launch, is_restarted(plan.config.save_dir, plan.launch)
    return dict(gather_to_all(own, world))


def _found_again(plan: TrainPlan, launches: Mapping[str, bool]) -> TrainPlan:
    """The plan with what is in save_dir now. Another run may have begun, saved or ended there since it was made.

    torchrun restarts all machines together, and may have replaced one: then the others know that it was a restart.
    """
    found = find_run(plan.config, restarted=any(launches.values()))
    found.check_may_begin(plan.config.save_dir)
    return dataclasses.replace(plan, found=found)


def check_same_run(config: TrainConfig, resumed: Checkpoint | None, world: World) -> None:
    """Raise InputError if the ranks found different checkpoints.

    This comes before any other exchange, in which such ranks would wait for each other forever.
    """
    training = resumed.training if resumed is not None else None
    steps = set(gather_to_all(training["progress"]["step"] if training else 0, world))
    if len(steps) > 1:
        raise InputError(
            f"--save_dir {config.save_dir}: processes found runs at steps {sorted(steps)} there; "
            "give a folder that all machines share"
        )


def open_records(plan: TrainPlan, training: dict[str, Any] | None, launches: Iterable[str]) -> Tracker:
    """Prepare save_dir: remove another run's checkpoints, write the flags and the names of the launch."""
    folder = plan.config.save_dir
    if not plan.continues:
        for name in CHECKPOINTS:
            (folder / name).unlink(missing_ok=True)
    (folder / LAUNCH).unlink(missing_ok=True)
    if names := [name for name in launches if name]:
        (folder / LAUNCH).write_bytes(os.fsencode("\n".join(names)))
    with atomic_write(folder / "config.yaml", "w") as file:
        yaml.safe_dump(plan.flags, file, sort_keys=False)
    return Tracker(
        folder,
        config=plan.flags,
        use_wandb=plan.config.wandb,
        wandb_id=training["wandb_id"] if training else None,
        step=training["progress"]["step"] if training and plan.continues else 0,
    )
