"""What a run of `evaluate/run.py` reads: its codecs and its images, opened once. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluate.config import KODAK_IMAGES, ORIGINALS, EvaluateConfig
from relic.codec.constants import EMBEDDED
from relic.errors import InputError
from relic.files import TEMPORARY_SUFFIX, check_folder
from relic.machine import available_cores
from relic.onnx.layout import DECODER, ENCODER, MANIFEST, TABLES, check_export
from relic.pictures.listing import list_images
from relic.shards.shard_set import ShardSet
from relic.storage.cache_flags import check_cache
from relic.storage.remote_file import find_file, local_name
from relic.storage.resident import CacheRoom
from relic.storage.spec import resolve_shards
from relic.storage.urls import is_url, url_path, without_secrets

REPORT_FILES = ("report.html", "rd.png", "summary.md", "metrics.json", "per_image.csv")
"""What `evaluate/report_files.py` writes beside the folders of the codecs."""
_MAX_NAME_BYTES = 200
_WORKERS_PER_CORE = 4
"""A worker keeps one core busy. More of them only take memory: a process, and an image with its activations, each."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of --images."""

    folder: Path
    names: tuple[str, ...]
    """Paths relative to the folder, sorted."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan:
    """The flags, and the files that they name."""

    config: EvaluateConfig
    labels: tuple[str, ...]
    """A short, unique name per codec, usable as the name of a folder: checkpoints, then export sets."""
    images: ShardSet | ImageFolder


def make_plan(config: EvaluateConfig) -> EvaluatePlan:
    """Check the paths and open the images. Shards at URLs are fetched here.

    Raises InputError, naming the flag, for paths that are missing or do not fit. Raises OSError for URLs that cannot be
    reached.
    """
    for checkpoint in config.checkpoint or []:
        if checkpoint != EMBEDDED:
            find_file(checkpoint, flag="--checkpoint", otherwise=f"give a checkpoint, or `{EMBEDDED}`")
    for folder in config.onnx or []:
        check_export("--onnx", folder, ENCODER, DECODER, TABLES, MANIFEST)
    most = _WORKERS_PER_CORE * available_cores()
    if config.workers > most:
        raise InputError(
            f"--workers {config.workers}: at most {most} here, {_WORKERS_PER_CORE} per core; 0 takes one each"
        )
    _refuse_twice(config.checkpoint or [], "--checkpoint")
    _refuse_twice(list(map(str, config.onnx or [])), "--onnx")
    check_folder("--out", config.out)
    labels = unique_labels([_named(codec) for codec in config.codecs])
    images = _open_shards(config, config.shards) if config.shards is not None else _list_folder(config)
    return EvaluatePlan(config=config, labels=tuple(labels), images=images)


def _open_shards(config: EvaluateConfig, shards: str) -> ShardSet:
    check_cache(config.cache_gb, config.cache_dir, {"--shards": shards})
    room = CacheRoom(config.cache_gb, config.cache_dir) if config.cache_gb else None
    opened = resolve_shards(shards, config.split, room=room, cache_dir=config.cache_dir)
    if opened.folder.resolve() == config.out.resolve():
        raise InputError(f"--out {config.out}: holds the shards; choose another folder for the results")
    return opened


def _list_folder(config: EvaluateConfig) -> ImageFolder:
    assert config.images is not None  # the config has refused it
    names = list_images(config.images)
    if config.published and len(names) != KODAK_IMAGES:
        raise InputError(f"--published: needs Kodak's {KODAK_IMAGES} images, {config.images} has {len(names)}")
    source, out = config.images.resolve(), config.out.resolve()
    if source == out or source in out.parents or out in source.parents:
        raise InputError(
            f"--out {config.out}: is inside --images {config.images} or contains it; choose another folder"
        )
    return ImageFolder(config.images, tuple(names))


def _named(codec: str) -> Path:
    """What the label of a codec is made of."""
    return Path(codec) if codec == EMBEDDED else Path(url_path(codec) if is_url(codec) else codec).resolve()


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """File stems. Where these are not unique, up to three folders are put before them, or else numbers.

    `a/last.pt` and `b/last.pt` become `a-last` and `b-last`. Each label is the name of a folder inside --out.
    """
    for num_folders in range(4):
        labels = [_folder_name("-".join((*_last_folders(path, num_folders), path.stem))) for path in paths]
        if len({*labels, ORIGINALS}) == len(paths) + 1:
            return labels
    return [_folder_name(f"{number}-{path.stem}") for number, path in enumerate(paths, start=1)]


def _folder_name(label: str) -> str:
    """`label` as the name of a folder that leads nowhere else and is none of the report's files.

    The checkpoint `...pt` has the stem `..`.
    """
    name = "".join(each if each.isprintable() and each not in "/\\" else "_" for each in label)
    while len(name.encode()) > _MAX_NAME_BYTES:
        name = name[:-1]
    taken = name.lower().removesuffix(TEMPORARY_SUFFIX) in REPORT_FILES
    return f"{name}_" if taken or not name.strip(". ") else name


def _last_folders(path: Path, count: int) -> tuple[str, ...]:
    folders = path.parts[1:-1]  # without the root
    return folders[max(0, len(folders) - count) :]


def _refuse_twice(codecs: Sequence[str], flag: str) -> None:
    seen: set[Path] = set()
    for codec in codecs:
        path = Path(local_name(codec)).resolve()
        if path in seen:
            raise InputError(f"{flag} {without_secrets(codec)}: given twice")
        seen.add(path)
