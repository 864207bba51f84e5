"""The files of a shard that prep packed: are they there, and as the manifest says?"""

from pathlib import Path

from relic.errors import InputError
from relic.shards.index import index_path, read_index_header
from relic.shards.manifest import ShardInfo, read_json


def uploaded_path(tar: Path) -> Path:
    """What stands for a tar that `--out_url` wrote to an object store."""
    return tar.with_suffix(".uploaded")


def url_of_uploaded(note: Path) -> str:
    """The folder that the tar of a note was written to. Raises InputError for what is no such note."""
    try:
        return str(read_json(note, "a note of an upload", "pack into another --out_dir")["url"])
    except (KeyError, TypeError):
        raise InputError(f"{note}: not a note of an upload that relic wrote; pack into another --out_dir") from None


def check_there(tar: Path) -> None:
    """Raise InputError for a shard that is not there."""
    if tar.exists():
        return
    if uploaded_path(tar).exists():
        raise InputError(f"{tar}: --out_url wrote it to {url_of_uploaded(uploaded_path(tar))}; give that URL")
    raise InputError(f"{tar}: the shard is missing; run the same make_shards.py again")


def check_packed(tar: Path, shard: ShardInfo) -> None:
    """Raise InputError if a tar that relic packed, or its index, is not the manifest's."""
    check_there(tar)
    header = read_index_header(index_path(tar))
    if not tar.stat().st_size == header.tar_bytes == shard.bytes or header.samples != shard.samples:
        raise InputError(f"{tar}: cut or changed since it was packed; delete it and run the same make_shards.py again")
