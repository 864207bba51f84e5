"""What `--cache_gb` and `--cache_dir` go with. Opens no connection."""

from collections.abc import Mapping
from pathlib import Path

from relic.errors import InputError
from relic.files import check_folder
from relic.storage.spec import parse_spec


def check_cache(cache_gb: float, cache_dir: Path | None, sets: Mapping[str, str | None]) -> None:
    """Raise InputError for a flag of the cache that no set needs, and for a folder that cannot hold the cache.

    `sets`: flag -> its text; None where it is not given.
    """
    if not cache_gb and cache_dir is None:
        return
    specs = {flag: parse_spec(text, flag=flag) for flag, text in sets.items() if text is not None}
    if not any(spec.is_remote for spec in specs.values()):
        given = f"--cache_gb {cache_gb:g}" if cache_gb else f"--cache_dir {cache_dir}"
        local = " and ".join(f"{flag} {spec.shown}" for flag, spec in specs.items())
        raise InputError(f"{given}: goes with shards at URLs; {local} is read where it is, so leave the flag out")
    if cache_dir is not None:
        check_folder("--cache_dir", cache_dir)
        for flag, spec in specs.items():
            folders = {spec.folder} if spec.folder else {Path(tar).parent for tar in spec.tars if not spec.is_remote}
            if {folder.resolve() for folder in folders} & {cache_dir.resolve(), *cache_dir.resolve().parents}:
                raise InputError(f"--cache_dir {cache_dir}: is inside {flag} {spec.shown}; choose another folder")
