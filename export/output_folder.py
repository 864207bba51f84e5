"""The folder an export is written to: its files appear in it all together, or not at all."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from relic.errors import InputError
from relic.files import nearest_existing, sync_folder
from relic.lock import lock
from relic.signals import handling, terminate

_PREFIX = ".relic-export-"


@contextmanager
def staged_output(folder: Path, *, last: str | None = None, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder. When the block ends without an error, its files are renamed into `folder`.

    The temporary folder is on the same file system: in `folder`, or in its nearest parent that exists. After an error
    or SIGTERM inside the block, `folder` is as it was before. A process that is killed leaves its temporary folder; the
    next export to the same place removes it. Inside the block, all temporary files of this process are in it too.

    `last` names the file that says the others are complete: an old one is removed first, the new one is renamed last.
    `owned` names folders that belong to an export: where `folder` holds an old `last`, its old `owned` are removed too.

    Raises InputError where `folder` cannot be written to. Also where it holds one of `owned` without a `last`: that
    folder is not ours.
    """
    holds_export = last is not None and (folder / last).is_file()
    parent = nearest_existing(folder)
    # The folder of an export that was killed before --out was there is beside it.
    for place in {parent, folder.absolute().parent}:
        _remove_abandoned(place)
    with ExitStack() as stack:
        try:
            staging = _make_staging(parent, stack)
        except OSError as error:
            raise InputError(f"--out {folder}: cannot be written to: {error.strerror}") from None
        try:
            with handling((signal.SIGTERM,), terminate), _temporaries_in(staging):  # ends the block as an error does
                yield staging
            _publish(staging, folder, last, owned, holds_export=holds_export)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _temporaries_in(staging: Path) -> Iterator[None]:
    """Temporary files of torch, onnx and onnxruntime are inside `staging`: a killed export leaves none elsewhere."""
    before, folder = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="tmp-", dir=staging))
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, folder: Path, last: str | None, owned: Sequence[str], *, holds_export: bool) -> None:
    foreign = [name for name in owned if not holds_export and (staging / name).exists() and (folder / name).exists()]
    if foreign:
        raise InputError(f"--out {folder}: its {foreign[0]} belongs to no export; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    if last is not None:
        (folder / last).unlink(missing_ok=True)
    for name in owned if holds_export else ():
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in sorted(staging.iterdir(), key=lambda path: path.name == last):
        os.replace(file, folder / file.name)
    sync_folder(folder)


def _make_staging(parent: Path, stack: ExitStack) -> Path:
    """A new temporary folder in `parent`, whose lock `stack` holds."""
    while True:
        staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            held = stack.enter_context(lock(staging, wait_seconds=0))
        except FileNotFoundError:
            continue
        if held and staging.exists():  # else another export took it for an abandoned one
            return staging


def _remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders of exports that were killed: no process holds their locks."""
    for left in parent.glob(f"{_PREFIX}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        # An InputError: the file system has no locks, so nobody knows whether the folder is in use.
        with suppress(OSError, InputError), lock(left, wait_seconds=0, advice="it is left there") as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
