"""An object store on this machine: SeaweedFS, which speaks S3, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.store import S3Store

WEED = str(Path(sys.executable).with_name("weed"))
KEY, SECRET = "key-of-the-test", "secret-of-the-test"
# It may read another bucket only.
POOR_KEY, POOR_SECRET = "poor-key-of-the-test", "poor-secret-of-the-test"
# SeaweedFS makes a bucket for the first object that an administrator puts into it, and for nobody else.
_ADMIN = "admin-of-the-test"
_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
_IDENTITIES = {
    "identities": [
        {"name": "admin", "credentials": [{"accessKey": _ADMIN, "secretKey": _ADMIN}], "actions": ["Admin"]},
        {
            "name": "good",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Read", "Write", "List", "Tagging"],
        },
        {"name": "poor", "credentials": [{"accessKey": POOR_KEY, "secretKey": POOR_SECRET}], "actions": ["Read:other"]},
    ]
}
_PR_SET_PDEATHSIG = 1


class Server:
    """The server: where it answers, and its process, which tests may stop, kill and start again.

    Parameters
    ----------
    command : list of str
        Starts it, with the same ports and the same files each time.
    folder : Path
        Of its files.
    port : int
        At which it speaks S3.
    """

    def __init__(self, command: list[str], folder: Path, port: int) -> None:
        self._command, self._folder = command, folder
        self.endpoint = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self.process is not None and self.process.poll() is None:
            # A second one would never get the ports, and a kill would reach that.
            return
        log = self._folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                self._command, stdout=file, stderr=file, cwd=self._folder, preexec_fn=_die_with_parent
            )
        _wait_until_ready(self.endpoint, self.process, log)

    def kill(self) -> None:
        """End it as a power loss of its machine would: without a word to it. What it wrote stays."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def env(self) -> dict[str, str]:
        """Variables for obstore."""
        return settings(self.endpoint)

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its address."""
        client = _administrator(self.endpoint, name)
        obstore.put(client, "first", b"")
        obstore.delete(client, "first")
        return f"s3://{name}"


def settings(endpoint: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """Variables with which obstore uses an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def seaweedfs() -> Generator[Server]:
    """Run the server; it is gone when the block ends or this process does, however it does."""
    with tempfile.TemporaryDirectory(prefix="probesweep-weed-") as folder:
        identities = Path(folder) / "identities.json"
        identities.write_text(json.dumps(_IDENTITIES))
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        # `mini` is ready after one second; `server` takes three.
        command = [WEED, "-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [
            f"-{name.replace('.', '.port.') if '.' in name else name + '.port'}={ports[name]}" for name in ports
        ]
        command += [f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        server = Server(command, Path(folder), ports["s3"])
        try:
            yield server
        finally:
            server.kill()


def read_objects(env: Mapping[str, str], address: str, expected: Iterable[str] = ()) -> dict[str, bytes]:
    """All objects below an address: path from there -> content. By obstore alone, and without what is tested.

    Those that are `expected` are asked for by name: SeaweedFS that was killed now and then gives an object that it does
    not list.
    """
    client = _client(env, address)
    paths = {one["path"] for page in obstore.list(client) for one in page}
    found: dict[str, bytes] = {}
    for path in sorted(paths.union(expected)):
        # One that is listed must be there.
        with suppress(FileNotFoundError) if path not in paths else nullcontext():
            found[path] = bytes(obstore.get(client, path).bytes())
    return found


def write_objects(env: Mapping[str, str], address: str, files: Mapping[str, bytes]) -> None:
    """Put objects below an address, in the place of those that are there."""
    client = _client(env, address)
    for path, content in files.items():
        obstore.put(client, path, content)


def delete_objects(env: Mapping[str, str], address: str, paths: Iterable[str]) -> None:
    """Remove objects below an address."""
    client = _client(env, address)
    for path in paths:
        obstore.delete(client, path)


def _client(env: Mapping[str, str], address: str) -> S3Store:
    return _connected(env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], address)


@lru_cache(maxsize=4)
def _connected(endpoint: str, key: str, secret: str, address: str) -> S3Store:
    """A client, kept for the next call: making one takes longer than most requests."""
    parts = urlsplit(address)
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=endpoint,
        access_key_id=key,
        secret_access_key=secret,
        region="us-east-1",
        client_options={"allow_http": True},
    )


def _die_with_parent() -> None:
    # Nobody else would end it after this process was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_ready(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    client = _administrator(endpoint, "ready")
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/healthz", timeout=5).close()
            # It answers before it can store anything.
            obstore.put(client, "ready", b"")
        except (OSError, obstore.exceptions.BaseError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}") from error
            time.sleep(0.05)
        else:
            return


def _administrator(endpoint: str, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=_ADMIN,
        secret_access_key=_ADMIN,
        client_options={"allow_http": True, "timeout": "5s"},
        retry_config={"max_retries": 0},
    )


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has: not those that the kernel gives to clients, which may be taken while a server restarts."""
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            break
    return ports
