"""Checks of flags for several benchmarks. They raise InputError naming the flag."""

from collections.abc import Mapping
from pathlib import Path

from relic.errors import InputError, RefusedError, before_work
from relic.files import check_folder


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Raise InputError if a field of `config` is smaller than its value in `least`."""
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise InputError(f"--{name} {getattr(config, name)}: must be {smallest} or more")


def check_files(**files: Path | None) -> None:
    """Flag name -> file. Raise InputError if a file cannot be written there. None: the flag was not given."""
    for name, path in files.items():
        if path is not None and path.is_dir():
            raise RefusedError(f"--{name} {path}: is a folder; name a file in it")
        if path is not None and not path.parent.is_dir():
            raise RefusedError(f"--{name} {path}: no folder {path.parent}")
        if path is not None:
            with before_work():
                check_folder(f"--{name}", path.parent)


def check_folders(**folders: Path | None) -> None:
    """Each folder, by the name of its flag, must exist. None: the flag was not given."""
    for name, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise RefusedError(f"--{name} {folder}: no such folder")
