"""Several images at a time: the same rows in the same order, and errors that end the run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate.plan
from evaluate import evaluator, parallel
from evaluate.codecs import TorchCodec
from evaluate.parallel import map_images
from evaluate.round_trip import _without_interrupts, coders, round_trip
from evaluate.run import main
from evaluate.sources import SourceImage
from relic.bitstream.tables import Tables
from relic.codec.coding import tables_of
from relic.codec.model import Architecture
from relic.errors import InputError


@pytest.fixture
def tables(make_codec: Callable[..., Any]) -> Tables:
    model = make_codec()
    model.update(force=True)
    return tables_of(model)


def test_two_workers_give_what_one_gives(
    save_codec: Callable[..., Path], folder: Path, run: Callable[..., Any]
) -> None:
    path = save_codec()
    outcomes = [
        run("--checkpoint", path, "--images", folder, "--recon_count", 4, "--workers", n, out=n) for n in ("1", "3")
    ]
    for alone, beside in zip(*(outcome.rows for outcome in outcomes), strict=True):
        for name in ("name", "width", "height", "file_bytes", "bpp_real"):
            assert alone[name] == beside[name]
        for name in ("psnr_db", "bpp_estimated", "ms_ssim"):
            assert alone[name] == beside[name] or float(alone[name]) == pytest.approx(float(beside[name]), rel=1e-6)
        assert float(beside["encode_ms"]) > 0 and float(beside["decode_ms"]) > 0
    for number in range(4):
        one, other = (outcome.out / "codec" / f"{number:03d}.png" for outcome in outcomes)
        assert one.read_bytes() == other.read_bytes()


def test_more_workers_than_the_cores_can_use_are_refused_and_more_than_images_are_not_started(
    save_codec: Callable[..., Path], folder: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.plan, "available_cores", lambda: 3)
    path, started = save_codec(), []

    def counted(tables: Tables, processes: int) -> Any:
        started.append(processes)
        return coders(tables, processes)

    monkeypatch.setattr(evaluator, "coders", counted)
    assert run("--checkpoint", path, "--images", folder, "--workers", "12").code == 0
    assert started == [len(list(folder.rglob("*.*"))) - 1]  # one of these is no image
    assert run("--checkpoint", path, "--images", folder, "--workers", "13").code == 2


def test_a_full_memory_names_the_codec_and_the_image(
    save_codec: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    analyse = TorchCodec.analyse

    def full(self: TorchCodec, x_BCHW: torch.Tensor) -> torch.Tensor:
        if x_BCHW.size(3) > 256:  # not in the warm-up
            torch.empty(1 << 60)  # torch's own error
        return analyse(self, x_BCHW)

    monkeypatch.setattr(TorchCodec, "analyse", full)
    argv = ["--checkpoint", str(save_codec()), "--images", str(folder), "--out", str(folder.parent / "out")]
    assert main([*argv, "--device", "cpu", "--workers", "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate/run.py: error: codec, more/c.png: the memory is full; use smaller images")


def test_a_bad_image_among_good_ones_ends_it_in_one_line(
    save_codec: Callable[..., Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.jpg").write_bytes(b"not an image")
    argv = ["--checkpoint", str(save_codec()), "--images", str(folder), "--out", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--workers", "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate/run.py: error: ") and "c.jpg: not a readable image" in error
    assert not (tmp_path / "out").exists()
    assert multiprocessing.active_children() == []


def test_a_gpu_computes_two_images_while_all_others_are_coded(
    make_codec: Callable[..., Any], make_image: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU is taken for a GPU. Six images are coded at once, or the barrier breaks."""
    monkeypatch.setattr(evaluator, "_is_gpu", lambda device: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    model = make_codec()
    model.update(force=True)
    codec = TorchCodec("codec.pt", "codec", Architecture((8, 12), "none"), model, torch.device("cpu"))
    busy, most, warm, lock = 0, 0, [], threading.Lock()

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.02)
            try:
                return method(*args)
            finally:
                with lock:
                    busy -= 1

        return call

    def reconstruct(x: torch.Tensor, own: Callable[..., Any] = codec.reconstruct) -> Any:
        if not x.any():
            warm.append((threading.get_ident(), *x.shape[2:]))
        return own(x)

    monkeypatch.setattr(codec, "analyse", watched(codec.analyse))
    monkeypatch.setattr(codec, "synthesise", watched(codec.synthesise))
    monkeypatch.setattr(codec, "reconstruct", reconstruct)
    all_coding = threading.Barrier(6)

    def code(symbols: Any, width: int, height: int) -> Any:
        all_coding.wait(timeout=60)
        return round_trip(symbols, width, height, codec.tables)

    images = [
        SourceImage(number, str(number), torch.from_numpy(make_image(48 + 16 * (number % 2), 32, number))[None])
        for number in range(12)
    ]
    scored = list(map_images(evaluator.Scorer(codec, code), images, 6))
    assert [each.image.number for each in scored] == list(range(12))
    assert most == 2 and len(set(warm)) == len(warm)
    assert {(height, width) for _, height, width in warm} == {(32, 48), (32, 64)}


def test_coding_processes_answer_as_this_one_does_and_end(tables: Tables) -> None:
    symbols = np.arange(12 * 6, dtype=np.int32).reshape(12, 2, 3) % 5 - 2
    here = round_trip(symbols, 48, 32, tables)
    with coders(tables, 2) as code:
        for _ in range(3):
            there = code(symbols, 48, 32)
            np.testing.assert_array_equal(there.symbols, here.symbols)
            assert there[1:4] == here[1:4]
        with pytest.raises(InputError, match="do not belong to 480 x 32 pixels"):
            code(symbols, 480, 32)
        assert code(symbols, 48, 32).payload_bytes == here.payload_bytes
    assert multiprocessing.active_children() == []


def test_a_killed_coding_process_is_an_error_not_a_wait(tables: Tables) -> None:
    symbols = np.zeros((12, 2, 3), dtype=np.int32)
    with coders(tables, 2) as code:
        code(symbols, 48, 32)
        for child in multiprocessing.active_children():
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(InputError, match=r"a coding process was killed.*--workers 1"):
                code(symbols, 48, 32)


def test_large_images_come_one_at_a_time_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_LARGE_PIXELS", 100)
    running: list[int] = []
    together: dict[int, list[int]] = {}
    shared = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)

    def look(image: SourceImage) -> tuple[int, int]:
        running.append(image.number)
        together[image.number] = list(running)
        value = int(image.pixels_BHWC[0, 0, 0, 0])
        running.remove(image.number)
        return image.number, value

    def images() -> Iterator[SourceImage]:
        for number in range(20):
            large = torch.full((1, 20, 20, 3), number, dtype=torch.uint8)
            yield SourceImage(number, "", large if number % 5 == 0 else shared.fill_(number))

    threads = torch.get_num_threads()
    assert list(map_images(look, images(), 3)) == [(number, number) for number in range(20)]
    assert torch.get_num_threads() == threads
    assert all(together[number] == [number] for number in range(0, 20, 5))


ROOT = Path(__file__).resolve().parents[2]
START = """
import multiprocessing, signal, sys
from pathlib import Path
from evaluate.round_trip import coders
from relic.bitstream.tables import Tables
with coders(Tables.load(Path(sys.argv[1])), 2):
    for child in multiprocessing.active_children():
        print(next(line for line in open(f"/proc/{child.pid}/status") if line.startswith("SigBlk")).split()[1])
print(next(line for line in open("/proc/self/status") if line.startswith("SigBlk")).split()[1])
"""


def test_ctrl_c_does_not_reach_coding_processes_from_their_first_moment(tables: Tables, tmp_path: Path) -> None:
    """In a new process, where multiprocessing has not started its resource tracker yet."""
    tables.save(tmp_path / "tables.npz")
    command = [sys.executable, "-c", START, str(tmp_path / "tables.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    blocked = [bool(int(mask, 16) >> (signal.SIGINT - 1) & 1) for mask in done.stdout.split()]
    assert blocked == [True, True, False]


def test_ctrl_c_while_processes_start_takes_effect_when_they_have_started() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), _without_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)
    assert reached and signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
