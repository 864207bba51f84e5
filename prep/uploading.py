"""Shards that go to `--out_url`: each tar is written there when it is packed, and then removed here.

`train-000000.uploaded` in the folder stands for a tar that is there. It is written when the store has confirmed it.
"""

from prep.split_folder import SplitFolder
from relic.errors import InputError
from relic.files import write_json
from relic.shards.index import index_path
from relic.shards.manifest import Manifest, ShardInfo, manifest_path
from relic.shards.packed_files import uploaded_path, url_of_uploaded
from relic.shards.shard_set import plan_path
from relic.storage.objects import list_files, put_file
from relic.storage.upload import check_packed_tar
from relic.storage.urls import in_folder, without_secrets


def upload_shard(folder: SplitFolder, info: ShardInfo, url: str) -> None:
    """Write a packed shard to the folder `url`, the tar last, and remove the tar here."""
    tar = folder.folder / info.name
    for path in (index_path(tar), tar.with_suffix(".jsonl"), tar):
        put_file(path, in_folder(url, path.name))
    write_json(uploaded_path(tar), {"url": without_secrets(url)})
    tar.unlink()


def check_url(folder: SplitFolder, url: str | None) -> None:
    """Raise InputError if shards of the folder were written to another URL, or those at `url` by another folder."""
    for marker in folder.uploaded():
        there = url_of_uploaded(marker)
        if url is None or there != without_secrets(url):
            raise InputError(f"--out_dir {folder.folder}: its shards are at {there}; give --out_url {there}")
    if url is None or folder.uploaded() or plan_path(folder.folder, folder.split).exists():
        return
    for found in list_files(url):
        if found.name.startswith((f"{folder.split}-", f"{folder.split}.json")):
            raise InputError(
                f"--out_url {without_secrets(url)}: holds {folder.split} shards that --out_dir {folder.folder} has not "
                "written; choose another URL"
            )


def finish_upload(folder: SplitFolder, manifest: Manifest, url: str) -> None:
    """Write what is left of a split that is packed: tars that are still here, the listings, and last the manifest.

    Raises InputError if a shard that was written is no longer there.
    """
    for info in manifest.shards:
        tar = folder.folder / info.name
        if tar.exists():
            check_packed_tar(tar, info)
            upload_shard(folder, info, url)
    sizes = {found.name: found.size for found in list_files(url)}
    lost = [info for info in manifest.shards if sizes.get(info.name) != info.bytes]
    for info in lost:
        uploaded_path(folder.folder / info.name).unlink(missing_ok=True)
    if lost:
        raise InputError(
            f"{without_secrets(in_folder(url, lost[0].name))}: is not there as it was written; run the command again"
        )
    for path in (folder.rejected_path, folder.contact_path, manifest_path(folder.folder, folder.split)):
        put_file(path, in_folder(url, path.name))
