"""Which tars of a set belong to a split."""

import pytest

from relic.errors import InputError
from relic.shards.splits import select_split

TOLD = [
    (["train-0.tar", "val-0.tar"], ["train-0.tar"], ["val-0.tar"]),
    (["imagenet-train-000000.tar", "imagenet-val-000000.tar"], [0], [1]),
    (["cc12m_training_0.tar", "cc12m_validation_0.tar"], [0], [1]),
    (["x.Train.0.tar", "x.VALID.0.tar", "x.test.0.tar"], [0], [1]),
    (["train2017.tar", "val2017.tar"], [0], [1]),
    (["d/set-dev-0.tar", "d/set-train-0.tar"], [1], [0]),
    (["d/train/0.tar", "d/val/0.tar", "d/val/1.tar"], [0], [1, 2]),
    (["/validation/part-0.tar", "/train/part-0.tar"], [1], [0]),
    (["a-train-0.tar", "a-train-1.tar"], [0, 1], []),
    (["pipe:cat a-train-0.tar", "pipe:cat a-val-0.tar"], [0], [1]),
]
EITHER = [
    ["00000.tar", "00001.tar"],
    ["a-test-0.tar", "a-test-1.tar"],
    ["coco-trainval-0.tar"],
    ["a-train-val-0.tar", "a-train-val-1.tar"],
    ["strained-0.tar", "valley-0.tar"],
    ["/data/train/0.tar", "/data/train/1.tar"],
    ["pipe:cat train-000000.tar | cat"],
]


@pytest.mark.parametrize(("tars", "train", "val"), TOLD)
def test_words_in_names_tell_the_split(
    tars: list[str], train: list[int | str], val: list[int | str], caplog: pytest.LogCaptureFixture
) -> None:
    for split, wanted in (("train", train), ("val", val)):
        assert select_split(tars, split) == [tars[each] if isinstance(each, int) else each for each in wanted]
    assert not caplog.messages


@pytest.mark.parametrize("tars", EITHER)
def test_other_names_serve_either_split_and_the_log_says_so(tars: list[str], caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val"):
        assert select_split(tars, split) == tars
        assert f"all {len(tars)} tars are read as {split}, and as any other split" in caplog.text


@pytest.mark.parametrize(
    "tars",
    [
        ["a-train-0.tar", "a-val-0.tar", "extra.tar"],
        ["a-train-0.tar", "a-val-train-0.tar"],
        ["d/train/0.tar", "d/val/0.tar", "d/other/0.tar"],
    ],
)
def test_names_that_contradict_each_other_are_refused(tars: list[str]) -> None:
    with pytest.raises(InputError, match=rf"{tars[-1]}: its name tells (no split|two splits)"):
        select_split(tars, "train")


def test_names_beside_those_of_relic_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert select_split(["train-0.tar", "other.tar"], "train") == ["train-0.tar"]
    assert "other.tar: not read" in caplog.text
