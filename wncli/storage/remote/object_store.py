"""Object stores: Amazon's S3 and what speaks its language, Google's and Microsoft's, by obstore.

Which account, region and endpoint: from the environment, as obstore reads it (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME and their like).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from wncli.errors import FileError, printable
from wncli.storage.addresses import Address, Meter
from wncli.storage.remote import patience
from wncli.storage.remote.patience import AgainError, Stop, patiently
from wncli.storage.remote.places import MissingError, read_all
from wncli.storage.remote.ranges import WINDOW
from wncli.storage.remote.source import Parts, RemoteSource

Result = TypeVar("Result")

#: What the environment is looked into for, by scheme: who asks, and what is said about that.
_WHO = {
    "s3": (("AWS_ACCESS_KEY_ID",), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "gs": (
        ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY",
         "GOOGLE_APPLICATION_CREDENTIALS"),
        "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_TOKEN",
         "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"),
        "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
    ),
}  # fmt: skip
_ANYBODY = {"s3": "AWS_SKIP_SIGNATURE", "gs": "GOOGLE_SKIP_SIGNATURE", "az": "AZURE_SKIP_SIGNATURE"}
#: Where another store than the provider's own is named.
_ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT",
)  # fmt: skip
_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
#: What a message of obstore has from the environment, which may be secret.
_QUOTED = re.compile(r'"[^"]*"|`[^`]*`|Url: .*')
_NAP = 0.1
#: Names of a folder that are listed.
_MOST_NAMES = 10_000


class StorePlace:
    """An object of a bucket, or all below a prefix as a folder."""

    def __init__(self, address: Address) -> None:
        self.address = address
        bucket, _, self.key = address.given.partition("://")[2].partition("/")
        if not bucket:
            raise FileError(address.shown, "this is no address", expected="BUCKET/KEY")
        self.prefix = self.key.rpartition("/")[0]
        self.store = _store(address, bucket)
        self.stop = Stop(lambda: None)

    def file(self) -> RemoteSource:
        """Open the object."""
        if not self.key or self.key.endswith("/"):
            raise MissingError(self.address.shown, "this is a folder")
        return self._open(self.key, self.address.shown, 0)

    def names(self) -> Sequence[str] | None:
        """List the objects directly below the prefix; None where there are none."""
        prefix = self.key.rstrip("/")
        found = self._list(prefix)
        if not found:
            return None
        self.prefix = prefix
        return found

    def open(self, name: str, number: int = 0) -> RemoteSource:
        """Open an object of the folder, or beside the one that the address is of."""
        key = f"{self.prefix}/{name}" if self.prefix else name
        bucket = self.address.shown.partition("://")[2].partition("/")[0]
        return self._open(key, f"{self.address.scheme}://{bucket}/{key}", number)

    def near(self) -> Sequence[str]:
        """List addresses of objects that may be meant."""
        try:
            names = self._list(self.key.rpartition("/")[0])
        except FileError:
            return ()
        near = get_close_matches(self.address.name, names, n=3)
        return [self.address.beside(name).shown for name in near]

    def companions(self) -> Sequence[str]:
        """List the objects of the folder."""
        return self._list(self.prefix)

    def read(self, name: str) -> bytes:
        """Return all that is in an object of the folder."""
        return read_all(self.open(name))

    def close(self) -> None:
        """Have nothing wait any more."""
        self.stop.event.set()
        self.stop.close()

    def _open(self, key: str, shown: str, number: int) -> RemoteSource:
        file = _StoredFile(self.store, key, shown, self.address, self.stop)
        return RemoteSource(Parts(file), number)

    def _list(self, prefix: str) -> list[str]:
        def ask() -> list[str]:
            self.address.meter.count(requests=1)
            found = self.store.list_with_delimiter(prefix or None)["objects"]
            return [str(one["path"]).rpartition("/")[2] for one in found[:_MOST_NAMES]]

        with _Refusals(self.address.shown, self.address.scheme):
            return _apart(ask, self.stop)


class _StoredFile:
    """An object, in one version, read by ranges."""

    def __init__(self, store: Any, key: str, name: str, address: Address, stop: Stop) -> None:  # noqa: ANN401 - obstore is imported where it is used
        self.store = store
        self.key = key
        self.name = name
        self.scheme = address.scheme
        self.meter: Meter = address.meter
        self.stop = stop
        self.nbytes = -1
        self.etag: str | None = None
        self.version: str | None = None

    @property
    def mark(self) -> str:
        """The ETag, or else the version."""
        return self.etag or self.version or ""

    def begin(self) -> tuple[int, bytes]:
        """Ask for the first bytes, and return the size of the object with them."""
        return patiently(self._begin, self.name, self.stop)

    def _begin(self) -> tuple[int, bytes]:
        with _Refusals(self.name, self.scheme):
            try:
                meta, data = self._get(0, WINDOW)
            except _exceptions().GenericError as error:
                if _STATUS.search(str(error)) and "416" in str(error):  # nothing is in it
                    return 0, b""
                raise
        self.nbytes = int(meta["size"])
        self.etag, self.version = meta.get("e_tag"), meta.get("version")
        self._refuse_length(len(data), min(WINDOW, self.nbytes))
        return self.nbytes, bytes(data)

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what is at `offset`."""

        def attempt() -> None:
            with _Refusals(self.name, self.scheme):
                meta, data = self._get(offset, len(buffer))
            is_other = self.etag and meta.get("e_tag") and meta["e_tag"] != self.etag
            if is_other or int(meta["size"]) != self.nbytes:
                raise _changed(self.name)
            self._refuse_length(len(data), len(buffer))
            buffer[:] = data

        patiently(attempt, self.name, self.stop)

    def download(self) -> Path | None:
        """Return None: it is read part by part."""
        return None

    def _get(self, offset: int, count: int) -> tuple[dict[str, Any], bytearray]:
        options: dict[str, Any] = {"range": (offset, offset + count)}
        if self.etag and not self.etag.startswith("W/"):
            options["if_match"] = self.etag
        if self.version:
            options["version"] = self.version

        def ask() -> tuple[dict[str, Any], bytearray]:
            self.meter.count(requests=1)
            found = self.store.get(self.key, options=options)
            data = bytearray()
            for part in found.stream(min_chunk_size=0):  # who lies may never end
                data += memoryview(part)
                if len(data) > count:
                    break
            self.meter.count(nbytes=len(data))
            return found.meta, data

        return _apart(ask, self.stop)

    def _refuse_length(self, found: int, expected: int) -> None:
        if found > expected:
            raise FileError(
                self.name,
                "the store sends more of the object than it was asked for",
                expected=f"{expected:,} bytes",
            )
        if found != expected:
            raise AgainError(
                FileError(
                    self.name,
                    "the answer breaks off before its end",
                    expected=f"{expected:,} bytes",
                    found=f"{found:,}",
                    hint="try again later",
                )
            )


def _apart(ask: Callable[[], Result], stop: Stop) -> Result:
    """Ask in a thread that is left alone once nothing waits for it: Rust hears no Ctrl-C."""
    found: list[Result] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)
        done.set()

    threading.Thread(target=run, daemon=True).start()
    while not done.wait(_NAP):
        if stop.event.is_set():
            raise FileError("", "reading it was ended, as something else has failed")
    if failed:
        raise failed[0]
    return found[0]


def _exceptions() -> Any:  # noqa: ANN401 - a module
    import obstore.exceptions

    return obstore.exceptions


class _Refusals:
    """Turns what obstore raises into refusals, with nothing of its texts, which have secrets."""

    def __init__(self, where: str, scheme: str) -> None:
        self.where = where
        self.scheme = scheme

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        known = _exceptions()
        if isinstance(error, ValueError) and not isinstance(error, known.BaseError):
            raise FileError(
                self.where,
                "no object can have this key",
                expected="parts between slashes that are not empty, . or ..",
            ) from None
        if not isinstance(error, (known.BaseError, OSError)) or isinstance(error, FileError):
            return
        status = _STATUS.search(str(error))
        found = f"status {status[1]}" if status else ""
        if isinstance(error, (known.NotFoundError, FileNotFoundError)):
            raise MissingError(
                self.where, "no such file", expected="a checkpoint", found=found
            ) from None
        if isinstance(error, known.PreconditionError):
            raise _changed(self.where) from None
        denied = (known.PermissionDeniedError, known.UnauthenticatedError, PermissionError)
        if isinstance(error, denied) or (status and status[1] in {"401", "403"}):
            raise self._denied(found) from None
        if isinstance(error, known.NotSupportedError):
            raise FileError(self.where, "this server gives no parts of files") from None
        raise FileError(
            self.where,
            "the store does not give it",
            expected="a store that this machine can reach, in the region where the bucket is",
            found=found or _reason(str(error)),
            hint="check the address, and the endpoint and the region in the environment",
        ) from None

    def _denied(self, found: str) -> FileError:
        variables, said = _WHO[self.scheme]
        named = [name for name in variables if os.environ.get(name)]
        who = f"to who {named[0]} says" if named else f"to nobody: no {said} in the environment"
        return FileError(
            self.where,
            "the store does not let it be read",
            expected="an account that may read it",
            found=f"{found}, {who}" if found else who,
            hint=f"set {said}, or {_ANYBODY[self.scheme]}=true for what anybody may read",
        )


def _reason(text: str) -> str:
    """Return why there is no answer, as far as it is known by name."""
    lower = text.lower()
    for words in ("dns error", "connection refused", "timed out", "certificate"):
        if words in lower:
            return printable(words)
    return "no answer"


def _changed(where: str) -> FileError:
    return FileError(
        where,
        "it has changed meanwhile",
        expected="one version of it until all is read",
        hint="run it again",
    )


def _store(address: Address, bucket: str) -> Any:  # noqa: ANN401 - a store of obstore
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError:
        raise FileError(
            address.shown,
            "what reads object stores is not installed",
            expected="the package obstore",
            hint="pip install 'wncli[remote]'",
        ) from None
    known = patience.PATIENCE
    second = timedelta(seconds=1)
    client: dict[str, Any] = {
        "connect_timeout": known.timeout * second,
        "timeout": 12 * known.timeout * second,
        "user_agent": "wncli",
    }
    if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
        client["allow_http"] = True  # a store of one's own, at an address that says so
    retry: dict[str, Any] = {
        "max_retries": known.retries,
        "backoff": {
            "init_backoff": known.first * second,
            "max_backoff": known.longest * second,
            "base": 2,
        },
        "retry_timeout": 60 * second,
    }
    kinds = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return kinds[address.scheme](bucket, client_options=client, retry_config=retry)
    except Exception as error:  # noqa: BLE001 - obstore's own, and what its settings raise
        raise FileError(
            address.shown,
            "the environment does not say how this store is read",
            expected=_WHO[address.scheme][1],
            found=printable(_QUOTED.sub("…", str(error).partition("\n")[0])[:200]),
        ) from None
