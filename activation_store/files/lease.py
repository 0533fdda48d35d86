"""One writer of a store in an object store: an object that its writer renews for as long as it lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from activation_store.errors import StoreLockedError
from activation_store.files.requests import Requests, Version

# A writer renews its lock this often. One that is not renewed for the second time is up for grabs.
RENEW_SECONDS = 5.0
LEASE_SECONDS = 20.0
_LARGEST_NBYTES = 4096


# Locks that were looked at in this process -> their content, and since when it has been the same.
_watched: dict[str, tuple[bytes, float]] = {}


@dataclass(frozen=True)
class Found:
    """A lock as somebody left it.

    Parameters
    ----------
    content : bytes
        JSON, from another process or another program.
    version : Version
        Of the object.
    """

    content: bytes
    version: Version

    @property
    def fields(self) -> dict[str, Any]:
        """What it says; empty where it says nothing that can be read."""
        try:
            fields = json.loads(self.content)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}

    @property
    def holder(self) -> str:
        """Its writer, for messages."""
        process, host = self.fields.get("process"), self.fields.get("host")
        return (
            f"process {process} on {host}" if isinstance(process, int) and isinstance(host, str) else "another process"
        )

    def is_dead(self) -> bool:
        """Whether its writer ran on this machine, and does not any more."""
        process, machine = self.fields.get("process"), self.fields.get("machine")
        if not isinstance(process, int) or machine is None or machine != _machine():
            return False
        return _started(process) != self.fields.get("started")


class Lease:
    """A lock that is held, and renewed by a thread. Times are those of this machine's own clock.

    Parameters
    ----------
    requests : Requests
        For its object.
    name : str
        Of its object.
    token : str
        What only this holder knows.
    version : Version
        Of the object that the holder wrote.
    renewed : float
        When it began to write it.
    """

    def __init__(self, requests: Requests, name: str, token: str, version: Version, renewed: float) -> None:
        self._requests, self._name, self._token = requests, name, token
        self._version, self._renewed = version, renewed
        self._lost = False
        self._mutex, self._stop = Lock(), Event()
        # Ends with its process, whatever that does.
        self._thread = Thread(target=self._keep, daemon=True, name="lock of a store")
        self._thread.start()

    @classmethod
    def acquire(cls, address: str, name: str) -> Lease:
        """Become the only writer; watches a lock whose writer may be dead for up to `LEASE_SECONDS`.

        Raises
        ------
        StoreLockedError
            Another process is; names it.
        """
        requests, token = _requests(address), secrets.token_hex(16)
        while True:
            found = _free(requests, name)
            begun = _now()
            # Somebody else may be faster.
            with suppress(FileExistsError, FileNotFoundError):
                version = requests.put(name, [_content(token)], found and found.version, new=found is None)
                return cls(requests, name, token, version, begun)

    def check(self) -> None:
        """Raise `StoreLockedError` if another writer holds the lock by now, or may."""
        # A process that was stopped, or a machine that slept: if nobody took it, it is still held.
        if not self._lost and self._is_late():
            with suppress(OSError):
                self._renew()
        if self._lost:
            holder = "another process"
            with suppress(OSError):
                found = _look(self._requests, self._name)
                holder = found.holder if found else holder
            raise StoreLockedError(
                f"{self._requests.address} was taken over by {holder}, because this one did not renew its lock for "
                f"{LEASE_SECONDS:g} s; wait for it or stop it, then run the same command again"
            )
        if self._is_late():
            raise StoreLockedError(
                f"{self._requests.where(self._name)} could not be renewed for {LEASE_SECONDS:g} s, so another process "
                "may write the store; run the same command again when the object store can be reached"
            )

    def release(self) -> None:
        """Remove the lock if it is still this holder's, and stop renewing it."""
        self._stop.set()
        # Nobody takes it over right after that.
        if self._renew():
            self._requests.delete(self._name)
        self._thread.join()

    def _is_late(self) -> bool:
        return _now() - self._renewed > LEASE_SECONDS

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            # The lease runs out where this goes on; `check` says so.
            with suppress(OSError):
                self._renew()

    def _renew(self) -> bool:
        with self._mutex:
            if self._lost:
                return False
            while True:
                begun = _now()
                try:
                    self._version = self._requests.put(self._name, [_content(self._token)], self._version)
                except (FileExistsError, FileNotFoundError):
                    found = _look(self._requests, self._name)
                    if found is None or found.fields.get("token") != self._token:
                        self._lost = True
                        return False
                    # A renewal that was written, and whose answer was lost: nobody knows when. Once more.
                    self._version = found.version
                else:
                    self._renewed = begun
                    return True


def check_free(address: str, name: str) -> None:
    """Raise `StoreLockedError` while another process holds a lock; watches one whose writer may be dead."""
    _free(_requests(address), name)


def _requests(address: str) -> Requests:
    # An answer that comes later than the lock lasts is of no use.
    return Requests(address, hasty=LEASE_SECONDS / 4)


def _free(requests: Requests, name: str) -> Found | None:
    """A lock whose writer is dead, or None if there is none."""
    first = found = _look(requests, name)
    where = requests.where(name)
    # Every renewal has other bytes: the same as at an earlier look were not renewed in between.
    content, begun = _watched.get(where, (None, 0.0))
    if found is not None and found.content != content:
        begun = _now()
        _watched[where] = found.content, begun
    while found is not None and not found.is_dead() and _now() - begun <= LEASE_SECONDS:
        time.sleep(RENEW_SECONDS / 5)
        found = _look(requests, name)
        if first and found and found.content != first.content:
            raise StoreLockedError(f"{requests.address} is being written by {found.holder}; wait for it or stop it")
    return found


def _look(requests: Requests, name: str) -> Found | None:
    try:
        part = requests.get(name, 0, _LARGEST_NBYTES)
    except FileNotFoundError:
        return None
    return Found(bytes(part.content), part.version)


def _content(token: str) -> bytes:
    """A lock of this process, other bytes for every renewal, so that the server's ETag tells them apart."""
    fields = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "token": token,
        "renewal": secrets.token_hex(8),
    }
    return json.dumps(fields).encode()


def _now() -> float:
    # Goes on while the machine sleeps, where there is such a clock.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str | None:
    """What all processes that see each other by their numbers share; None where it is not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process started, in the kernel's count; None if it has ended. Numbers of processes are used again."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Killed, and its parent has not looked yet.
    return None if fields[0] in "ZX" else fields[19]
