"""The Python environment of a toolchain: in the cache folder, made from its pinned requirements by pip."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from export.toolchains.registry import FOLDER, TOOLCHAINS
from relic.cache import cache_folder, short_hash
from relic.errors import InputError
from relic.lock import lock
from relic.options import ToolchainName

INSTALLER = "export/install_toolchain.py"
_DONE = ".installed"
"""A file in an environment that is complete."""


def requirements_of(name: ToolchainName) -> Path:
    """The pinned requirements of a toolchain."""
    return FOLDER / f"{name}.txt"


def environment_folder(name: ToolchainName) -> Path:
    """Where the environment is, or would be. Other requirements or another Python give another folder."""
    content = f"{sys.version_info[:2]} {requirements_of(name).read_text()}"
    return cache_folder("toolchains", f"{name}-{short_hash(content)}")


def find_python(name: ToolchainName) -> Path:
    """The interpreter of an installed toolchain. Raises InputError that says how to install it."""
    folder = environment_folder(name)
    if not (folder / _DONE).is_file():
        toolchain = TOOLCHAINS[name]
        accept = "" if toolchain.open_source else " --accept_licence"
        raise InputError(
            f"--toolchain {name}: {toolchain.title} is not installed; python {INSTALLER} --toolchain {name}{accept} "
            f"installs it ({toolchain.gigabytes:g} GB; licence: {toolchain.licence})"
        )
    return folder / "bin" / "python"


def install(name: ToolchainName) -> Path:
    """Make the environment of a toolchain, unless it is complete. Returns its folder.

    Raises InputError if pip cannot install the packages. Then nothing stays.
    """
    folder = environment_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock is on a file beside the folder, because the folder is removed and made again.
    with lock(folder.with_suffix(".lock"), create=True):
        if (folder / _DONE).is_file():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            venv.create(folder, symlinks=True, with_pip=True)
            _pip(folder, name)
            (folder / _DONE).touch()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def _pip(folder: Path, name: ToolchainName) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--requirement"]
    done = subprocess.run(
        [*command, str(requirements_of(name))], env=clean_environment(), text=True, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(errors or done.stderr.splitlines()[-1:])
        raise InputError(f"--toolchain {name}: pip could not install {requirements_of(name).name}: {said}")


def clean_environment() -> dict[str, str]:
    """The environment variables, without those that would bring in packages of another Python."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
