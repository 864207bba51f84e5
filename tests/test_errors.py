"""What `command` makes of errors."""

import io
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from relic.errors import InputError, RefusedError, before_work, command, naming, report
from tests.conftest import set_ranks

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize("error", [MemoryError("9 GiB"), RuntimeError(f"{ALLOCATOR} 9000000000000 bytes.")])
def test_a_full_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @command("tool.py")
    def main(argv: object = None) -> int:
        raise error

    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tool.py: error: the memory is full; use smaller images") and said.count("\n") == 1


def test_a_process_that_lost_another_one_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @command("tool.py")
    def main(argv: object = None) -> int:
        raise RuntimeError("[/x/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:6874. ...")

    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tool.py: error: another process of this run has ended; its own") and said.count("\n") == 1


@pytest.mark.torch
@pytest.mark.commands
def test_torch_says_so_when_another_process_ends(tmp_path: Path) -> None:
    script = tmp_path / "lost.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import torch\nimport torch.distributed as dist\nfrom relic.errors import command\n"
        "dist.init_process_group('gloo')\nif dist.get_rank() == 1:\n    os._exit(3)\n"
        "@command('tool.py')\ndef main(argv=None):\n    dist.all_reduce(torch.ones(1))\n    return 0\n"
        "sys.exit(main())\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False, timeout=100)
    assert "tool.py: error: another process of this run has ended" in done.stderr
    assert "Traceback" not in done.stderr.split("tool.py: error")[0]


@pytest.mark.parametrize(
    "error", [MemoryError("9 GiB"), RuntimeError(f"{ALLOCATOR} 9000000000000 bytes."), RuntimeError("std::bad_alloc")]
)
def test_a_full_memory_names_the_file_that_filled_it(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^big\.png: the memory is full; use smaller images"), naming("big.png"):
        raise error
    with pytest.raises(RuntimeError, match=r"^a bug$"), naming("big.png"):
        raise RuntimeError("a bug")


def test_other_errors_keep_their_traceback() -> None:
    @command("tool.py")
    def main(argv: object = None) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        main([])


def test_what_is_refused_before_the_work_ends_with_2_and_what_fails_in_it_with_1() -> None:
    def fail() -> NoReturn:
        raise InputError("--flag: wrong")

    @command("tool.py")
    def refuses(argv: object = None) -> int:
        with before_work():
            fail()

    @command("tool.py")
    def fails(argv: object = None) -> int:
        fail()

    assert (refuses([]), fails([])) == (2, 1)
    with pytest.raises(RefusedError, match="--flag"), before_work():
        fail()


def test_one_process_of_a_machine_says_what_all_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for local_rank, refused, failed in ((0, 1, 1), (1, 0, 1)):
        set_ranks(monkeypatch, local_rank, 2)
        assert report("tool.py", RefusedError("no such folder")) == 2
        assert capsys.readouterr().err.count("no such folder") == refused
        assert report("tool.py", InputError("a cut shard")) == 1
        assert capsys.readouterr().err.count("a cut shard") == failed


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))

    @command("tool.py")
    def main(argv: object = None) -> int:
        sys.stdout.write("日本.png\n")
        sys.stdout.flush()
        return 0

    assert main([]) == 0
    assert written.getvalue() == b"\\u65e5\\u672c.png\n"
