"""Training from an object store, with a cache of half the set: the same weights as from local shards."""

from pathlib import Path

import pytest

from tests.storage.s3_server import S3Server
from tests.train.runs import assert_equal, tiny, weights

pytestmark = [pytest.mark.commands, pytest.mark.timeout(120)]


def test_a_run_with_half_of_the_set_in_the_cache_equals_a_local_one(crops: Path, tmp_path: Path, s3: S3Server) -> None:
    from train.main import main

    assert main(tiny(crops, tmp_path / "local")) == 0
    files = {path.name: path.read_bytes() for path in crops.iterdir() if path.is_file()}
    tars = sorted(name for name in files if name.endswith(".tar"))
    half = sum(len(files[name]) for name in tars) / 2e9
    s3.put_folder("bucket/set", files)
    shards = f"s3://bucket/set/{{{','.join(tars)}}}"
    assert main(tiny(Path("unused"), tmp_path / "remote", "--shards", shards, "--cache_gb", str(half))) == 0
    assert s3.ranges
    assert_equal(weights(tmp_path / "remote"), weights(tmp_path / "local"))
