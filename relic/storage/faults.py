"""Why a transfer failed, and what obstore's errors mean. No message holds a secret.

The text of an obstore error holds the request's URL, and so a signature, and what the server sent. It is only searched,
never repeated.
"""

import re

from relic.errors import InputError
from relic.storage.urls import scheme_of, without_secrets

_BUSY = {"408", "425", "429", "500", "502", "503", "504"}
"""HTTP codes after which another attempt may succeed."""
_ROLE = re.compile(r"/latest/(api/token|meta-data)|/computeMetadata/|/metadata/identity/|MissingAccount")
"""In an error of the last place that credentials come from: the service that tells a machine of a cloud its role."""
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true if it is public",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file; GOOGLE_SKIP_SIGNATURE=true if it is public",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; AZURE_SKIP_SIGNATURE=true if it is public",
}


class PermanentError(InputError):
    """Another attempt does not help: the file does not exist, is not allowed, or is no shard."""


class MissingError(PermanentError):
    """The file does not exist."""


class FullDiskError(PermanentError):
    """There is no room for the file here."""


class NotConditionalError(PermanentError):
    """The store writes no file on a condition."""


class TransferError(Exception):
    """A transfer failed. Another attempt may succeed."""


class BusyError(TransferError):
    """The server asks to come back later."""


class UnknownHostError(TransferError):
    """There is no such host, so another attempt waits in vain."""


class NotResumedError(TransferError):
    """The server does not send the rest of what it began to send: it cannot, or the file has changed."""


class NetworkError(ConnectionError):
    """The host, or the network, failed in all attempts.

    No InputError: the command line may be right. As an OSError it ends a command in one line, with exit code 1.
    """


_CONNECTION = (
    (r'"dns error"', UnknownHostError, "the host is not known"),
    (r"TooManyRedirects", PermanentError, "the server redirects without end"),
    (r"BadScheme", PermanentError, "it leads to another protocol"),
    (r"InvalidCertificate", PermanentError, "the host's certificate is not valid"),
    (r"MissingContentLength", PermanentError, "the server does not tell the length; use pipe:curl -fL URL"),
    (r"kind: InvalidData", TransferError, "the host does not speak TLS"),
    (r"kind: Timeout", TransferError, "the host does not answer in time"),
    (r"kind: Connect", TransferError, "the host does not answer"),
    (r"kind: (Interrupted|Request|Decode)", TransferError, "the connection was cut"),
)
"""What is in the structure of an error where no server has answered, or the answer was cut."""


def fault(url: str, error: Exception) -> Exception:
    """The error of this module that `error`, of obstore or for a URL's text, stands for. PermanentErrors name `url`."""
    if isinstance(error, InputError):
        return error
    text = str(error)
    structure = text.rpartition("\nDebug source:")[2]
    scheme = scheme_of(url)
    shown = without_secrets(url)
    if _ROLE.search(structure):
        return PermanentError(f"{shown}: no credentials for {scheme}://; {_CREDENTIALS.get(scheme, '')}")
    if "BareRedirect" in structure:
        what = "the bucket is in another region; set AWS_REGION" if scheme == "s3" else "the server redirects to no URL"
        return PermanentError(f"{shown}: {what}")
    status = re.search(r"inner: Status \{\s*status: (\d{3}),", structure)
    if isinstance(error, FileNotFoundError) or (status is not None and status[1] == "404"):  # the latter of a listing
        found = "there is no such bucket" if "<Code>NoSuchBucket</Code>" in text else "there is no such file"
        return MissingError(f"{shown}: {found} (HTTP 404)")
    if status is not None:
        return _answered(scheme, shown, status[1], text)
    for pattern, kind, what in _CONNECTION:
        if re.search(pattern, structure):
            return kind(f"{shown}: {what}" if issubclass(kind, PermanentError) else what)
    if isinstance(error, ValueError):
        return PermanentError(
            f"{shown}: not a URL that can be read; look at its host, and for `.` and `..` in its path"
        )
    if type(error).__name__ == "InvalidPathError":  # of a listing
        return PermanentError(f"{shown}: a name there has a part that is empty, `.` or `..`; rename that file")
    if type(error).__name__ == "NotSupportedError":
        return PermanentError(f"{shown}: the server does not send parts of a file")
    return PermanentError(f"{shown}: cannot be transferred ({type(error).__name__})")


def _answered(scheme: str, shown: str, status: str, text: str) -> Exception:
    """For an HTTP code other than 404. Object stores add a word, such as `ExpiredToken`."""
    word = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
    code = f"HTTP {status}, {word[1]}" if word else f"HTTP {status}"
    if status in _BUSY:
        return BusyError(f"the server fails ({code})")
    if status == "501":
        return NotConditionalError(f"{shown}: the server cannot do it ({code})")
    if status in ("401", "403"):
        advice = f"; {_CREDENTIALS[scheme]}" if scheme in _CREDENTIALS else ""
        return PermanentError(f"{shown}: the server does not allow it ({code}){advice}")
    if status.startswith("3"):
        return PermanentError(f"{shown}: it leads to another protocol")
    return PermanentError(f"{shown}: the server refuses it ({code})")
