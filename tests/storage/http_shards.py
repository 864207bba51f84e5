"""A web server on loopback for a folder of shards. It counts requests, and cuts or stalls answers when told to."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.storage.listening import listening


class ShardServer:
    """Serves `folder` and counts the requests per file name in `requests`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        """By file name: how many more answers are cut in the middle."""
        self.errors: dict[str, int] = {}
        """By file name: the HTTP code of every answer."""
        self.redirects: dict[str, str] = {}
        """By file name: where the answer leads."""
        self.versions: dict[str, str] = {}
        """By file name: the ETag of the answers. Parts of such a file are sent on request."""
        self.ranges: list[str] = []
        """The `Range` of each request that had one."""
        self.sent = 0
        """Bytes of bodies."""
        self.authorizations: list[str | None] = []
        self.stalls: set[str] = set()
        """File names whose answers stop in the middle and keep the connection open."""
        self.stalled = threading.Event()
        """Set when an answer has stopped."""
        self.release = threading.Event()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.split("?")[0].rpartition("/")[2]
        self.requests[name] += 1
        self.authorizations.append(handler.headers["Authorization"])
        path = self.folder / name
        if name in self.errors:
            handler.send_error(self.errors[name])
            return
        if name in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[name])
            handler.end_headers()
            return
        if not path.is_file():
            handler.send_error(404)
            return
        data, code, headers = self._part(handler, name, path.read_bytes())
        handler.send_response(code)
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if self.cuts[name] > 0 or name in self.stalls:
            data = data[: len(data) // 2]
        self.sent += len(data)
        handler.wfile.write(data)
        if self.cuts[name] > 0:
            self.cuts[name] -= 1
            handler.close_connection = True
        elif name in self.stalls:
            handler.wfile.flush()
            self.stalled.set()
            self.release.wait(60)

    def _part(self, handler: BaseHTTPRequestHandler, name: str, data: bytes) -> tuple[bytes, int, dict[str, str]]:
        """What is sent of `data`: all, or the part that is asked for; the code, and headers."""
        version = self.versions.get(name)
        asked = handler.headers["Range"]
        if asked:
            self.ranges.append(asked)
        if version is None:
            return data, 200, {}
        if handler.headers["If-Match"] not in (None, version):
            return b"", 412, {}
        if not asked:
            return data, 200, {"ETag": version}
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        return data[start:end], 206, {"ETag": version, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}


@contextmanager
def serve(folder: Path) -> Iterator[ShardServer]:
    """Serve `folder` until the block ends."""
    server = ShardServer(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler, server.release) as root:
        server.url = f"{root}/set"
        yield server
