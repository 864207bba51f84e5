"""What torchrun's environment variables say, whole, in part, or damaged."""

from pathlib import Path

import pytest

from relic.errors import InputError
from relic.launch import Ranks, launch_name, read_ranks

WHOLE = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def set_all(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_torchruns_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, WHOLE)
    assert read_ranks() == Ranks(rank=5, size=8, local_rank=1, local_size=4, machines=2, max_restarts=3)
    set_all(monkeypatch, {"MASTER_ADDR": "a-cluster-sets-it-everywhere", "LOCAL_WORLD_SIZE": "4"})
    assert read_ranks() == Ranks(rank=0, size=1, local_rank=0, local_size=1, machines=1, max_restarts=0)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_part_of_the_variables_is_one_line(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    set_all(monkeypatch, {name: value for name, value in WHOLE.items() if name != missing})
    with pytest.raises(InputError, match=f"but no {missing}; start with torchrun, or unset RANK"):
        read_ranks()


@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", "²", "9" * 5000])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
def test_what_is_no_number_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    set_all(monkeypatch, {**WHOLE, name: value})
    with pytest.raises(InputError, match=f"{name}|no launch has"):
        read_ranks()


@pytest.mark.parametrize(("rank", "size", "here"), [("8", "8", "1"), ("0", "0", "1"), ("0", "1", "0")])
def test_numbers_that_no_launch_has(monkeypatch: pytest.MonkeyPatch, rank: str, size: str, here: str) -> None:
    set_all(monkeypatch, {**WHOLE, "RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": here})
    with pytest.raises(InputError, match=f"WORLD_SIZE={size}.*which no launch has"):
        read_ranks()


@pytest.mark.torch
def test_the_name_of_a_launch_is_that_of_torchruns_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables of three launches with one run id and port, and of a restart, as torchrun's own code makes them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

    names = []
    for restarts in ((0, 1), (0,), (0,)):
        logs = DefaultLogsSpecs(log_dir=str(tmp_path))
        for count in restarts:
            variables = {**WHOLE, "TORCHELASTIC_RUN_ID": "job7", "TORCHELASTIC_RESTART_COUNT": str(count)}
            ranks = {0: dict(variables), 1: dict(variables)}
            logs.reify(ranks)
            for each in ranks.values():
                set_all(monkeypatch, each)
                names.append(launch_name())
    (first, *restarted), second, third = names[:4], names[4:6], names[6:]
    assert {first} == set(restarted) and len({first, *second, *third}) == 3
    for report in ("", "/dev/null", "error.json", "/a/b/c/error.json"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", report)
        assert launch_name() == ""
