"""An object store on this machine: SeaweedFS, which speaks S3, in a process of its own."""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Server:
    """Where it answers, and its process, which tests may stop and kill."""

    endpoint: str
    process: subprocess.Popen[bytes]

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
def seaweedfs() -> Iterator[Server]:
    """Run the server; it is gone when the block ends or this process does, however it does."""
    with tempfile.TemporaryDirectory(prefix="probesweep-weed-") as folder, (Path(folder) / "log").open("wb") as log:
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
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, preexec_fn=_die_with_parent)
        try:
            endpoint = f"http://127.0.0.1:{ports['s3']}"
            _wait_until_ready(endpoint, process, Path(log.name))
            yield Server(endpoint, process)
        finally:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    # Nobody else would end it after pytest was killed.
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
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
