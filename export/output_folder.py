"""The folder an export is written to: its files appear in it all together, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relic.errors import InputError
from relic.files import nearest_existing, sync_folder


@contextmanager
def staged_output(folder: Path, *, last: str | None = None, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder. When the block ends without an error, its files are renamed into `folder`.

    The temporary folder is on the same file system: in `folder`, or in its nearest parent that exists. After an error
    inside the block, `folder` is as it was before.

    `last` names the file that says the others are complete: an old one is removed first, the new one is renamed last.
    `owned` names folders that belong to an export: where `folder` holds an old `last`, its old `owned` are removed too.

    Raises InputError where `folder` cannot be written to. Also where it holds one of `owned` without a `last`: that
    folder is not ours.
    """
    holds_export = last is not None and (folder / last).is_file()
    try:
        staging = Path(tempfile.mkdtemp(prefix=".relic-export-", dir=nearest_existing(folder)))
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written to: {error.strerror}") from None
    try:
        yield staging
        foreign = [
            name for name in owned if not holds_export and (staging / name).exists() and (folder / name).exists()
        ]
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
    finally:
        shutil.rmtree(staging, ignore_errors=True)
