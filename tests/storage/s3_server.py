"""An S3 server on loopback that keeps its objects in memory. It knows what relic uses, and no more."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from relic.storage import stores
from tests.storage.listening import listening


class S3Server:
    """`objects` by `bucket/key`. Requests need the access key `key_id`, unless that is empty."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.buckets = {"bucket"}
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: Counter[str] = Counter()
        """By method and key."""
        self.ranges: list[str] = []
        self.sent = 0
        """Bytes of answers."""
        self.changed: dict[str, str] = {}
        """By key: when it was last written, as a listing tells it."""
        self.shorten: Callable[[str, int], int] = lambda name, length: length
        """How many bytes of an answer of some length are sent, by the key. Where it is fewer, the connection is cut."""
        self.busy: Counter[str] = Counter()
        """By key: how many more requests are answered with 503."""
        self.stalls: set[str] = set()
        """Keys whose whole answers stop in the middle; parts of them are sent."""
        self.unconditional = False
        """Whether writes on a condition are refused, as some servers do."""
        self.stalled = threading.Event()
        self.release = threading.Event()
        self.url = ""
        self.lock = threading.Lock()

    def put_folder(self, folder: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.objects[f"{folder}/{name}"] = data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: S3Server

    def log_message(self, *args: object) -> None:
        pass

    def handle_one(self) -> None:
        state = self.server_state
        parts = urlsplit(self.path)
        name, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)
        bucket = name.partition("/")[0]
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if name in state.stalls and self.command == "GET" and not self.headers["Range"]:
            self.stall(state.objects[name])
            return
        with state.lock:
            state.requests[f"{self.command} {name}"] += 1
            if f"Credential={state.key_id}/" not in (self.headers["Authorization"] or "") and state.key_id:
                self.answer_error(403, "AccessDenied")
            elif state.busy[name] > 0:
                state.busy[name] -= 1
                self.answer_error(503, "SlowDown")
            elif bucket not in state.buckets:
                self.answer_error(404, "NoSuchBucket")
            elif "list-type" in query:
                self.list_objects(bucket, query.get("prefix", [""])[0])
            elif "delete" in query:
                keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for key in keys:
                    state.objects.pop(f"{bucket}/{unescape(key)}", None)
                deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode(), {})
            elif self.command == "POST" or "partNumber" in query:
                self.take_part(name, query, body)
            elif self.command == "PUT":
                if hashlib.sha256(body).hexdigest() != self.headers["x-amz-content-sha256"]:
                    self.answer_error(400, "XAmzContentSHA256Mismatch")
                    return
                there = etag(state.objects[name]) if name in state.objects else None
                if state.unconditional and (self.headers["If-None-Match"] or self.headers["If-Match"]):
                    self.answer_error(501, "NotImplemented")
                    return
                if (self.headers["If-None-Match"] == "*" and there) or self.headers["If-Match"] not in (None, there):
                    self.answer_error(412, "PreconditionFailed")
                    return
                state.objects[name] = body
                self.answer(200, b"", {"ETag": etag(body)})
            elif name not in state.objects:
                self.answer_error(404, "NoSuchKey")
            else:
                self.send_object(state.objects[name])

    do_GET = do_HEAD = do_PUT = do_POST = handle_one

    def stall(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server_state.stalled.set()
        self.server_state.release.wait(60)
        self.close_connection = True

    def send_object(self, data: bytes) -> None:
        headers = {"ETag": etag(data), "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}
        if self.headers["If-Match"] not in (None, etag(data)):
            self.answer_error(412, "PreconditionFailed")
            return
        if self.headers["If-None-Match"] == etag(data):
            self.answer(304, b"", headers)
            return
        asked = self.headers["Range"]
        if not asked:
            self.answer(200, data, headers)
            return
        self.server_state.ranges.append(asked)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data):
            self.answer_error(416, "InvalidRange")
            return
        self.answer(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def list_objects(self, bucket: str, prefix: str) -> None:
        found = ""
        for name, data in sorted(self.server_state.objects.items()):
            key, changed = name.removeprefix(f"{bucket}/"), self.server_state.changed.get(name, "1994-11-06T08:49:37Z")
            if name.startswith(f"{bucket}/") and key.startswith(prefix):
                found += (
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{changed}</LastModified>"
                    f"<ETag>{etag(data)}</ETag><Size>{len(data)}</Size></Contents>"
                )
        page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self.answer(200, page.encode(), {"Content-Type": "application/xml"})

    def take_part(self, name: str, query: dict[str, list[str]], body: bytes) -> None:
        """One of the requests of an upload in parts: its start, a part, or its end."""
        uploads = self.server_state.uploads
        if "uploads" in query:
            uploads[name] = {}
            self.answer(
                200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>", {}
            )
        elif "partNumber" in query:
            uploads[name][int(query["partNumber"][0])] = body
            self.answer(200, b"", {"ETag": etag(body)})
        else:
            parts = uploads.pop(name)
            self.server_state.objects[name] = b"".join(parts[number] for number in sorted(parts))
            self.answer(200, b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>", {})

    def answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            sent = self.server_state.shorten(unquote(urlsplit(self.path).path).lstrip("/"), len(data))
            self.close_connection = sent < len(data)
            self.wfile.write(data[:sent])
            self.server_state.sent += sent

    def answer_error(self, code: int, word: str) -> None:
        self.answer(code, f"<Error><Code>{word}</Code></Error>".encode(), {})


def etag(data: bytes) -> str:
    """The version of an object, as S3 tells it."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def forget_stores() -> None:
    """Have stores made anew, from the environment as it is then."""
    stores.place_of.cache_clear()
    stores.store_of.cache_clear()


@contextmanager
def serve_s3(key_id: str = "") -> Iterator[S3Server]:
    """An S3 server until the block ends. With `key_id`, only requests signed with that key are answered.

    The stores that relic keeps are of other servers, and are made anew.
    """
    forget_stores()
    state = S3Server(key_id)
    handler = type("Handler", (_Handler,), {"server_state": state})
    with listening(handler, state.release) as state.url:
        try:
            yield state
        finally:
            forget_stores()
