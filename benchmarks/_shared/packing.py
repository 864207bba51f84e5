"""How made-up crops of a benchmark are packed."""

from relic.options import CropPlace, Decode
from relic.shards.manifest import Packing


def plain_packing(side: int, *, crop: CropPlace, samples_per_shard: int, decode: Decode = "exact") -> Packing:
    """Raw train crops of side x side, one per image."""
    return Packing(
        split="train",
        width=side,
        height=side,
        crop=crop,
        crops_per_image=1,
        encoding="raw",
        jpeg_quality=95,
        decode=decode,
        samples_per_shard=samples_per_shard,
        seed=0,
        sources_sha256="",
        libraries={},
    )
