"""Requests to an object store: repeated for a bounded time, checked to the byte, their errors in one line."""

from __future__ import annotations

import errno
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from activation_store.errors import CorruptStoreError, InputError

# A request that failed is not repeated after this time, and after the second where the server has never answered:
# a wrong address is more likely then than a server that is down.
TRY_SECONDS = 60.0
FIRST_SECONDS = 10.0
# One attempt takes no longer than the first, or what its bytes take at the second rate.
REQUEST_SECONDS = 30.0
SLOWEST_NBYTES_PER_SECOND = 2**20
# The most that S3 takes in one PUT.
LARGEST_NBYTES = 5 * 2**30
_PIECE_NBYTES = 8 * 2**20
_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "root_certificate",
    "user_agent",
)

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_REFUSED = {
    "InvalidAccessKeyId": "the server does not know the access key; correct the credentials in the environment",
    "SignatureDoesNotMatch": "the secret key is not that of the access key; correct the credentials in the environment",
    "ExpiredToken": "the credentials have expired; renew them in the environment",
    "RequestTimeTooSkewed": "this machine's clock differs from the server's; set it",
}
_TEMPORARY_CODES = {"ConditionalRequestConflict", "RequestTimeout", "SlowDown", "Throttling"}
_TEMPORARY_STATUS = {408, 429}
# What obstore says of XML that ends too early.
_INVALID = "Got invalid"

# The process that obstore's threads belong to: a fork of it has none of them, and would wait for them forever.
_process: list[int] = []

Result = TypeVar("Result")


@dataclass(frozen=True)
class Version:
    """One content of an object, as the server tells it from all others."""

    e_tag: str | None
    number: str | None


@dataclass(frozen=True)
class Part:
    """Bytes of an object, the length of all of it, and which content they are of."""

    content: memoryview
    n_bytes: int
    version: Version


class BrokenOffError(Exception):
    """An answer that holds other bytes than were asked for."""


class Requests:
    """Requests for the objects below an address.

    obstore's own repetitions are turned off. It neither notices a body that is shorter than the range asked for, nor
    repeats a PUT that was not answered, nor says whether an object that already exists may come from its first attempt.

    Parameters
    ----------
    address : str
        Such as ``s3://bucket/folder``.
    hasty : float, optional
        Seconds after which an attempt ends, and half of those after which there are no more; for small objects.

    Raises
    ------
    InputError
        The address is not one, or obstore is not installed.
    """

    def __init__(self, address: str, hasty: float | None = None) -> None:
        self.address = address
        self._hasty = hasty
        self._answered = False
        self._stores: dict[float, Any] = {}
        _check_address(address)
        self._store(self._seconds(0))

    def where(self, name: str) -> str:
        """Full name of an object or a folder."""
        return f"{self.address}/{name}" if name else self.address

    def get(self, name: str, start: int, n_bytes: int, version: Version | None = None) -> Part:
        """Bytes from `start` on; fewer where the object ends.

        Raises
        ------
        OSError
            There is no such object; it is not `version` any more; or the server does not give it.
        """
        path = _checked(name)
        try:
            return self._ask(self.where(name), partial(self._get, path, start, n_bytes, version), n_bytes)
        except FileExistsError as error:
            changed = "was replaced while it was read; run the same command again"
            raise OSError(errno.ESTALE, changed, self.where(name)) from error

    def _get(self, path: str, start: int, n_bytes: int, version: Version | None, seconds: float) -> Part:
        import obstore

        options: Any = {"range": (start, start + n_bytes)}
        if version and version.e_tag:
            options["if_match"] = version.e_tag
        try:
            answer = obstore.get(self._store(seconds), path, options=options)
            content, about = memoryview(answer.bytes()), answer.meta
        except Exception as error:
            if _status(error) != 416:
                raise
            # It ends before `start`.
            content, about = memoryview(b""), obstore.head(self._store(seconds), path)
        expected = max(0, min(start + n_bytes, about["size"]) - start)
        if content.nbytes != expected:
            raise BrokenOffError(f"{content.nbytes} bytes came instead of {expected}")
        return Part(content, about["size"], Version(about["e_tag"], about["version"]))

    def pieces(self, name: str) -> Iterator[bytes]:
        """All of an object, in parts of one content.

        Raises
        ------
        OSError
            As `get`.
        """
        done, version = 0, None
        while True:
            part = self.get(name, done, _PIECE_NBYTES, version)
            yield bytes(part.content)
            done, version = done + part.content.nbytes, part.version
            if done >= part.n_bytes:
                return

    def put(
        self, name: str, pieces: Sequence[bytes], condition: Version | None = None, *, new: bool = False
    ) -> Version:
        """Write an object in one request.

        Where an attempt failed in a way that leaves open whether the object was written, and the next finds the
        condition not met, the object is read: one that holds exactly `pieces` counts as written by that attempt. Who
        finds another's identical bytes in this way is told that it wrote them.

        Parameters
        ----------
        name : str
            Of the object.
        pieces : sequence of bytes
            Its content.
        condition : Version, optional
            What it must replace.
        new : bool
            Whether it must replace nothing.

        Raises
        ------
        FileExistsError
            There is another object than the condition allows.
        OSError
            The server does not take it.
        """
        import obstore

        path, where = _checked(name), self.where(name)
        n_bytes = sum(map(len, pieces))
        if n_bytes > LARGEST_NBYTES:
            too_large = f"{n_bytes} bytes are more than the 5 GiB that object stores take at once; use smaller shards"
            raise OSError(errno.EFBIG, too_large, where)
        mode: Any = "create" if new else "overwrite"
        if condition:
            known = {"e_tag": condition.e_tag, "version": condition.number}
            # Its documentation allows None, and it does not.
            mode = {name: value for name, value in known.items() if value is not None}
        open_outcomes: list[Exception] = []

        def send(seconds: float) -> Version:
            try:
                written = obstore.put(self._store(seconds), path, pieces, mode=mode, use_multipart=False)
            except Exception as error:
                if _is_temporary(error):
                    open_outcomes.append(error)
                raise
            return Version(written["e_tag"], written["version"])

        try:
            return self._ask(where, send, n_bytes)
        except FileExistsError:
            version = self._version_of(name, pieces, n_bytes) if open_outcomes else None
            if version is None:
                raise
            return version

    def _version_of(self, name: str, pieces: Sequence[bytes], n_bytes: int) -> Version | None:
        """The version of an object that holds exactly these bytes."""
        try:
            part = self.get(name, 0, 1)
            if part.n_bytes != n_bytes:
                return None
            done, mine = 0, b"".join(pieces)
            for theirs in self.pieces(name):
                if theirs != mine[done : done + len(theirs)]:
                    return None
                done += len(theirs)
        except FileNotFoundError:
            return None
        return part.version

    def n_bytes(self, name: str) -> int | None:
        """Length of an object, None if there is none."""
        about = self._about(name)
        return None if about is None else about["size"]

    def version(self, name: str) -> Version | None:
        """The content that an object has now, None if there is none."""
        about = self._about(name)
        return None if about is None else Version(about["e_tag"], about["version"])

    def _about(self, name: str) -> Any:
        import obstore

        path = _checked(name)
        try:
            return self._ask(self.where(name), lambda seconds: obstore.head(self._store(seconds), path))
        except FileNotFoundError:
            return None

    def folder(self, name: str) -> tuple[list[str], list[str]]:
        """What is directly below a folder: the names of folders, and those of objects."""
        import obstore

        path = _checked(name) if name else ""
        found = self._ask(
            self.where(name), lambda seconds: obstore.list_with_delimiter(self._store(seconds), path or None)
        )
        folders = [one.rsplit("/", 1)[-1] for one in found["common_prefixes"]]
        return folders, [one["path"].rsplit("/", 1)[-1] for one in found["objects"]]

    def below(self, most: int) -> list[str]:
        """Objects below the address, by their paths from there; no more than `most`."""
        import obstore

        def ask(seconds: float) -> list[str]:
            paths = (one["path"] for page in obstore.list(self._store(seconds)) for one in page)
            return list(islice(paths, most))

        return self._ask(self.address, ask)

    def delete(self, name: str) -> None:
        """Remove an object if it is there."""
        import obstore

        path = _checked(name)
        try:
            self._ask(self.where(name), lambda seconds: obstore.delete(self._store(seconds), path))
        except FileNotFoundError:
            return

    def _ask(self, where: str, request: Callable[[float], Result], n_bytes: int = 0) -> Result:
        """Result of a request, which takes the seconds that one attempt has; repeated while that may help."""
        from obstore.exceptions import BaseError

        if (_process or [os.getpid()])[0] != os.getpid():
            forked = "a process that used an object store was forked; start others with the method spawn or forkserver"
            raise OSError(errno.ENOTSUP, forked, where)
        _process[:] = [os.getpid()]
        begun = time.monotonic()
        wait = 0.1
        while True:
            try:
                result = request(self._seconds(n_bytes))
            except (BaseError, OSError, BrokenOffError) as error:
                known = self._explained(error, where)
                self._answered |= _status(error) is not None
                last = self._hasty / 2 if self._hasty else TRY_SECONDS if self._answered else FIRST_SECONDS
                if not _is_temporary(error) or time.monotonic() - begun + wait > last:
                    # Several lines of obstore's own, which tell users nothing, and may show what is secret.
                    raise known from None
                # Many that failed together do not come back together.
                time.sleep(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, 5)
            else:
                self._answered = True
                return result

    def _seconds(self, n_bytes: int) -> float:
        if self._hasty:
            return self._hasty
        # In powers of two: there is a client, with connections of its own, for each.
        times = n_bytes / SLOWEST_NBYTES_PER_SECOND / REQUEST_SECONDS
        return REQUEST_SECONDS * 2 ** math.ceil(math.log2(max(times, 1)))

    def _store(self, seconds: float) -> Any:
        if seconds not in self._stores:
            self._stores[seconds] = connect(
                self.address, retry_config={"max_retries": 0}, timeout=f"{round(1000 * seconds)}ms"
            )
        return self._stores[seconds]

    def _explained(self, error: Exception, where: str) -> OSError:
        """What went wrong: one line without anything secret."""
        text, status, code = str(error), _status(error), _code(error)
        bucket = urlsplit(self.address).netloc
        if code in _NO_BUCKET:
            # Not ENOENT: that would say that the bucket is there and the object is missing.
            return OSError(
                errno.ENXIO, f"there is no bucket {bucket} on the server; create it or correct the address", where
            )
        if isinstance(error, FileNotFoundError) or status == 404:
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
        if _is_unmet(error):
            return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), where)
        if "169.254." in text or "metadata.google" in text:
            return PermissionError(
                errno.EACCES, "no credentials were found; set those of the object store in the environment", where
            )
        if status in (401, 403) or code == "AccessDenied":
            refused = _REFUSED.get(code, "the server refuses access; check the credentials and what they may do")
            return PermissionError(errno.EACCES, refused, where)
        if isinstance(error, BrokenOffError) or _INVALID in text:
            return OSError(errno.EIO, "the server's answers are incomplete; run the same command again", where)
        if status is not None:
            answer = f"the server answers {status}{f' {code}' if code else ''}"
            return OSError(errno.EIO, f"{answer}; run the same command again when it works", where)
        if "configured region" in text:
            return OSError(errno.EIO, "the bucket is in another region; set AWS_REGION to that", where)
        if "BadScheme" in text:
            insecure = "the endpoint has no encryption; set AWS_ALLOW_HTTP=true in the environment if that is wanted"
            return OSError(errno.EPROTONOSUPPORT, insecure, where)
        if "kind: Connect" in text:
            # Where it has answered before, the address is not at fault.
            number = errno.ENETDOWN if self._answered else errno.EHOSTUNREACH
            return OSError(number, "the object store cannot be reached; check its endpoint and the network", where)
        if "kind: Timeout" in text:
            return TimeoutError(errno.ETIMEDOUT, "the server did not answer in time; run the same command again", where)
        if "HTTP error" in text:
            return OSError(errno.EIO, "the connection was lost; run the same command again", where)
        return OSError(errno.EIO, "the object store refuses this request; check its settings in the environment", where)


def connect(address: str, *, retry_config: Mapping[str, Any] | None = None, **options: str) -> Any:
    """The client of obstore for an address, with the settings of the environment.

    Parameters
    ----------
    address : str
        Of its root.
    retry_config : mapping, optional
        obstore's own repetitions.
    **options
        Of its HTTP client.

    Raises
    ------
    InputError
        The address cannot be used, or obstore is not installed.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise InputError(f'{address}: object stores need obstore: pip install "probesweep[cloud]"') from error
    # Given options, obstore looks for none of them in the environment.
    prefix = {"s": "AWS", "g": "GOOGLE"}.get(address[0].lower(), "AZURE")
    for key in (f"{prefix}_ENDPOINT", f"{prefix}_ENDPOINT_URL", f"{prefix}_ENDPOINT_URL_S3"):
        # With anything else obstore panics at the first request.
        if key in os.environ and not re.match(r"https?://[^/]", os.environ[key]):
            raise InputError(f"{address} cannot be used: {key} in the environment is not http://... or https://...")
    client = {name: os.environ[key] for name in _OPTIONS if (key := f"{prefix}_{name.upper()}") in os.environ}
    settings: Any = {"client_options": {**client, **options}, "retry_config": retry_config}
    try:
        return from_url(address, **settings)
    except Exception as error:
        # In quotes it may show what was found in a setting.
        reason = re.sub(r'".*"', "...", str(error).partition("\n")[0])
        raise InputError(f"{address} cannot be used: {reason}; correct it or the settings in the environment") from None


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    # In abfss://container@account.dfs.core.windows.net it is no user.
    has_user = parts.username is not None and not parts.scheme.lower().startswith("abfs")
    if has_user or parts.password is not None or parts.query or parts.fragment:
        raise InputError(
            f"an address of an object store is {parts.scheme}://bucket/folder, without user, password, ? and #; "
            "credentials belong into the environment"
        )
    if not parts.netloc:
        raise InputError(f"{address} names no bucket; give {parts.scheme}://bucket/folder")


def _checked(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise CorruptStoreError(f"{name!r} is no path below the root of a store")
    return name


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    """The server's own word for what is wrong."""
    found = re.search(r"<Code>(\w+)</Code>|\(code: (\w+)\)", str(error))
    return (found[1] or found[2]) if found else ""


def _is_unmet(error: Exception) -> bool:
    return type(error).__name__ in ("AlreadyExistsError", "PreconditionError")


def _is_temporary(error: Exception) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, BrokenOffError) or _INVALID in str(error) or _code(error) in _TEMPORARY_CODES:
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _TEMPORARY_STATUS
    return "HTTP error" in str(error) and "kind: Builder" not in str(error)
