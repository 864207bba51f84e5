"""Count the context tables of a checkpoint on training crops, and add them to its file."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from relic.bitstream.contexts import Contexts
from relic.bitstream.counting import count_contexts
from relic.codec.checkpoint import Checkpoint, save_checkpoint
from relic.codec.coding import analyse, tables_of
from relic.codec.pixels import to_float
from relic.codec.precision import without_tf32
from relic.codec.pretrained import codec_path, finished_model, read_codec
from relic.loader.loader import ShardLoader
from relic.shards.shard_set import ShardSet

log = logging.getLogger(__name__)

CROPS = 512
"""Crops that are counted at the end of a run."""
_BATCH = 8


def add_contexts(paths: list[Path], shards: ShardSet, num_crops: int, device: torch.device) -> None:
    """Count for each checkpoint of relic, and write it again with its contexts. Files of equal weights share them."""
    known: list[Checkpoint] = []
    for path in paths:
        checkpoint = read_codec(path, flag="--checkpoint")
        same = next((one for one in known if _same_weights(one, checkpoint)), None)
        contexts = same.contexts if same else contexts_on(checkpoint, shards, num_crops, device, str(path))
        checkpoint = dataclasses.replace(checkpoint, contexts=contexts)
        save_checkpoint(path, checkpoint)
        known.append(checkpoint)
        log.info("%s: %s", path, describe_contexts(contexts))


def add_contexts_to(name: str, out: Path, shards: ShardSet, num_crops: int, device: torch.device) -> Contexts | None:
    """Count for one checkpoint and write it to `out`. A state dict of CompressAI becomes a checkpoint of relic."""
    path = codec_path(name)
    checkpoint = read_codec(path, flag="--checkpoint")
    contexts = contexts_on(checkpoint, shards, num_crops, device, f"--checkpoint {path}")
    save_checkpoint(out, dataclasses.replace(checkpoint, contexts=contexts))
    return contexts


def contexts_on(
    checkpoint: Checkpoint, shards: ShardSet, num_crops: int, device: torch.device, source: str
) -> Contexts | None:
    """The contexts of a codec's symbols on crops spread evenly over the split. None if they would save nothing."""
    model = finished_model(checkpoint, source)
    tables = tables_of(model)
    model.to(device, memory_format=torch.channels_last)
    with without_tf32():
        symbols = np.concatenate([analyse(model, to_float(crops.to(device))) for crops in _crops(shards, num_crops)])
    return count_contexts(symbols, tables)


def describe_contexts(contexts: Contexts | None) -> str:
    """One line for the log."""
    if contexts is None:
        return "contexts would save nothing"
    rows, channels = len(contexts.row_length), len(contexts.channel)
    return (
        f"contexts for {channels} of {contexts.num_channels} channels: {rows} rows, {contexts.num_bytes / 1024:.1f} KB"
    )


def _crops(shards: ShardSet, num_crops: int) -> Iterator[torch.Tensor]:
    """uint8 (B, H, W, 3)"""
    count = min(num_crops, shards.num_samples)
    samples: npt.NDArray[np.int64] = np.linspace(0, shards.num_samples - 1, count).round().astype(np.int64)
    with ShardLoader(shards, batch_size=_BATCH) as loader:
        for batch in loader.batches(samples[first : first + _BATCH] for first in range(0, count, _BATCH)):
            yield batch.images


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return one.model.keys() == other.model.keys() and all(
        torch.equal(tensor, other.model[name]) for name, tensor in one.model.items()
    )
