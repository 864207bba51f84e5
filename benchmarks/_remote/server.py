"""A web server for the files of a folder, in a process of its own, with a rate for all connections and a latency.

It serves parts of files by `sendfile`, so that it takes little of the processor from what is measured.
"""

import os
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote

_ROOT = Path(__file__).resolve().parents[2]
_PIECE_BYTES = 1 << 16


@contextmanager
def serving(folder: Path, *, mb_per_second: float = 0, latency_ms: float = 0) -> Iterator[str]:
    """Yield the URL of a server of `folder`, which ends with the block. A rate of 0 is no limit."""
    words = [sys.executable, "-m", "benchmarks._remote.server", str(folder), str(mb_per_second), str(latency_ms)]
    with subprocess.Popen(words, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


class _Link:
    """Bytes per second, shared by all connections in the order in which they ask."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self.bytes_per_second
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    folder: Path
    link: _Link
    latency_seconds: float

    def handle(self) -> None:
        while request := self.rfile.readline():
            asked = ""
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"range:"):
                    asked = line.decode("latin-1")
            time.sleep(self.latency_seconds)
            self._answer(self.folder / unquote(request.split()[1].decode("latin-1")).rpartition("/")[2], asked)

    def _answer(self, path: Path, asked: str) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        try:
            length = os.fstat(descriptor).st_size
            start, end, head = 0, length, "200 OK"
            if found := re.search(r"bytes=(\d+)-(\d*)", asked):
                start, end = int(found[1]), min(int(found[2] or length) + 1, length)
                head = f"206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{length}"
            date = formatdate(os.fstat(descriptor).st_mtime, usegmt=True)
            head += f'\r\nETag: "{length}"\r\nLast-Modified: {date}\r\nContent-Length: {end - start}'
            self.wfile.write(f"HTTP/1.1 {head}\r\n\r\n".encode())
            while start < end:
                piece = end - start
                if self.link.bytes_per_second:
                    piece = min(piece, _PIECE_BYTES)
                    self.link.wait(piece)
                start += os.sendfile(self.connection.fileno(), descriptor, start, piece)
        finally:
            os.close(descriptor)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that the client has closed is no error."""


def _serve(folder: Path, mb_per_second: float, latency_ms: float) -> None:
    parts = {"folder": folder, "link": _Link(mb_per_second * 1e6), "latency_seconds": latency_ms / 1000}
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), parts)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()  # until the process that started this one ends


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
