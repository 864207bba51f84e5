"""Files that appear in their folder all together, complete, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from relic.errors import InputError
from relic.files import nearest_existing, sync_folder


@contextmanager
def published(folder: Path, *, last: str | None = None, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends without an error its files are renamed into `folder`.

    It lies on the same file system, in `folder` or the nearest parent that exists. `last` names the file that says the
    others are complete: an old one is removed first, the new one comes last. `owned` names folders that may be among
    the files; beside an old `last`, they are what it told of, and go with it. On an error inside the block, everything
    that was there stays as it was. Raises InputError where the folder cannot be written to, or holds one of `owned`
    that nothing tells of.
    """
    ours = last is not None and (folder / last).is_file()
    try:
        staging = Path(tempfile.mkdtemp(prefix=".relic-export-", dir=nearest_existing(folder)))
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written to: {error.strerror}") from None
    try:
        yield staging
        foreign = [name for name in owned if (staging / name).exists() and (folder / name).exists() and not ours]
        if foreign:
            raise InputError(f"--out {folder}: holds a {foreign[0]} that is of no export; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        if last is not None:
            (folder / last).unlink(missing_ok=True)
        for name in owned if ours else ():
            shutil.rmtree(folder / name, ignore_errors=True)
        for file in sorted(staging.iterdir(), key=lambda path: path.name == last):
            os.replace(file, folder / file.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
