"""What torchrun tells this process by environment variables: its rank, and its launch. Imports no torch."""

import os
from pathlib import Path
from typing import NamedTuple

from relic.errors import InputError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_WAY_OUT = "start with torchrun, or unset RANK and WORLD_SIZE to run one process"
_LARGEST = 1 << 31


class Ranks(NamedTuple):
    """This process's place among the processes of its launch."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on this machine."""
    local_size: int = 1
    """The number of processes on this machine."""
    machines: int = 1
    max_restarts: int = 0
    """How often torchrun starts the processes again, for example on the machines that are left."""


def is_launched() -> bool:
    """Whether this process is one of a launch. Without one, it is alone."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ


def read_ranks() -> Ranks:
    """Raises InputError, naming the variable, if only a part of them is set, or if one is not a number."""
    if not is_launched():
        return Ranks()
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise InputError(f"the environment has {_given()} but no {missing[0]}; {_WAY_OUT}")
    _number("MASTER_PORT")
    ranks = Ranks(
        _number("RANK"),
        _number("WORLD_SIZE"),
        _number("LOCAL_RANK", 0),
        _number("LOCAL_WORLD_SIZE", 1),
        _number("GROUP_WORLD_SIZE", 1),
        _number("TORCHELASTIC_MAX_RESTARTS", 0),
    )
    if ranks.rank >= ranks.size or not ranks.local_size:
        raise InputError(f"the environment has {_given()}, which no launch has; {_WAY_OUT}")
    return ranks


def launch_name() -> str:
    """A name of this machine's part of the launch: the same in all its processes and their restarts.

    It is the folder of torchrun's logs, which torchrun makes anew for each launch. The run id and the address of the
    rendezvous are chosen by users, who may use them again. Empty without torchrun, and with `--log-dir /dev/null`.
    """
    report = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))  # LOGS/attempt_0/RANK/error.json
    inside = len(report.parts) > 3 and report.parts[-3].startswith("attempt_")
    return str(report.parents[2]) if inside and is_launched() else ""


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal()) or int(text[:20]) > _LARGEST:
        raise InputError(f"the environment has {name}={text}, which is no number of a launch; {_WAY_OUT}")
    return int(text)


def _given() -> str:
    names = (*_NEEDED, "LOCAL_WORLD_SIZE")
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
