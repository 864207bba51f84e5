"""The store that a URL is in, with its credentials.

| scheme | credentials |
|---|---|
| `http`, `https` | user and password of the URL |
| `s3` | `AWS_...` of the environment, a profile of the `aws` command, the role of the machine |
| `gs` | `GOOGLE_...` of the environment, the login of `gcloud`, the role of the machine |
| `az` | `AZURE_...` of the environment, the role of the machine |
"""

import base64
import functools
import os
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from relic.storage.aws_profile import profile_settings
from relic.storage.faults import PermanentError
from relic.storage.urls import is_http, scheme_of, without_secrets

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

    Store = AzureStore | GCSStore | HTTPStore | S3Store

STALL_SECONDS = 60.0
"""A transfer that brings next to nothing in this time has failed, unless it ends."""
_CONNECT_SECONDS = 10
_RETRY_SECONDS = 60
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables that name a server in the place of the cloud's. One that begins with http:// allows that protocol."""


class Place(NamedTuple):
    """A file: the store it is in, and its key there."""

    store: "Store"
    key: str


@functools.lru_cache(maxsize=1 << 14)
def place_of(url: str, retries: int) -> Place:
    """Where `url` is. obstore makes up to `retries` attempts more where the host or the network fails."""
    if is_http(url):  # the folder stays as it is written; obstore would refuse a//b
        parts = urlsplit(url)
        folder, _, name = parts.path.rpartition("/")
        return Place(store_of(urlunsplit(parts._replace(path=folder + "/", fragment="")), retries), unquote(name))
    check_object_url(url)
    parts = urlsplit(url)
    return Place(store_of(f"{parts.scheme}://{parts.netloc}", retries), parts.path.lstrip("/"))


def check_object_url(url: str, flag: str = "") -> None:
    """Raise PermanentError, which names `flag`, for a URL of an object store that names no file and no folder.

    Opens no connection. What follows a `?` or `#` would be cut off, and so all files of such a folder would be one.
    """
    shown = f"{flag} {without_secrets(url)}".lstrip()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise PermanentError(f"{shown}: not a URL; a host in brackets is an IPv6 address") from None
    if not parts.netloc:
        raise PermanentError(f"{shown}: names no bucket")
    if parts.query or parts.fragment:
        raise PermanentError(f"{shown}: holds a ? or # after that; choose a name without them")
    if {"", ".", ".."} & set(parts.path.strip("/").split("/")) and parts.path.strip("/"):
        raise PermanentError(f"{shown}: a part of its path is empty, `.` or `..`; leave that out")


@functools.lru_cache(maxsize=256)
def store_of(root: str, retries: int) -> "Store":
    """The store of a bucket, or of a folder of a web server. Stores are kept, since each has its connections."""
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
    client: ClientConfig = {
        "timeout": timedelta(days=7),  # of a whole body; a stalled one ends after `read_timeout`
        "read_timeout": timedelta(seconds=STALL_SECONDS),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
    }
    if is_http(root):
        return _web_server(root, client, retry)
    for name in _ENDPOINTS[scheme_of(root)]:
        _allow_endpoint(name, os.environ.get(name), client)
    if root.startswith("gs:"):
        return GCSStore.from_url(root, client_options=client, retry_config=retry)
    if root.startswith("az:"):
        return AzureStore.from_url(root, client_options=client, retry_config=retry)
    settings = profile_settings()
    _allow_endpoint("endpoint_url", settings.get("endpoint"), client)
    return S3Store.from_url(root, config=cast("S3Config", settings), client_options=client, retry_config=retry)


def _allow_endpoint(name: str, endpoint: str | None, client: "ClientConfig") -> None:
    """Have `client` speak the protocol of the server `endpoint`. Raises PermanentError if `name` tells none."""
    if not endpoint:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise PermanentError(f"{name}: the URL of a server begins with http:// or https://")
    if endpoint.startswith("http://"):
        client["allow_http"] = True


def _web_server(root: str, client: "ClientConfig", retry: "RetryConfig") -> HTTPStore:
    parts = urlsplit(root)
    user, at, host = parts.netloc.rpartition("@")
    client["allow_http"] = parts.scheme.lower() == "http"
    if at:
        credentials = base64.b64encode(unquote(user).encode()).decode()
        client["default_headers"] = {"Authorization": f"Basic {credentials}"}
    return HTTPStore.from_url(urlunsplit(parts._replace(netloc=host)), client_options=client, retry_config=retry)
