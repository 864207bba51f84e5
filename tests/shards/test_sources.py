"""The source of a sample: from the `.jsonl` beside its shard, and none where that does not fit."""

from pathlib import Path

import pytest

from relic.shards.shard_set import open_shard_set
from relic.shards.sources import sources_of
from tests.conftest import write_shards


def test_crops_of_one_image_have_one_source_also_across_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, counts=(5, 4), side=64, crops_per_image=3)
    samples = [8, 0, 4, 5, 2, 3]
    sources = sources_of(open_shard_set(tmp_path, "train"), samples)
    assert sources == [f"image {sample // 3}.jpg" for sample in samples]


@pytest.mark.parametrize(
    "listing", [None, b"", b"\xff\n" * 3, b"[]\n" * 3, b"{}\n" * 3, b'{"source": "same.jpg"}\n' * 2, b"3\n" * 3]
)
def test_a_sample_whose_line_cannot_be_used_is_an_image_of_its_own(tmp_path: Path, listing: bytes | None) -> None:
    write_shards(tmp_path, counts=(3, 2), side=64, crops_per_image=5)
    path = tmp_path / "train-000000.jsonl"
    path.unlink()
    if listing is not None:
        path.write_bytes(listing)
    sources = sources_of(open_shard_set(tmp_path, "train"), range(5))
    assert len(set(sources[:3])) == 3 and sources[3] == sources[4] == "image 0.jpg" and sources[4] not in sources[:3]
