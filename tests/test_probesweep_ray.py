"""Where work can run: what is no such place is said in a line before Ray is even imported."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from probesweep_errors import ProbesweepError
from probesweep_ray import Cluster, Machines, _shares, check_answers
from tests.helpers.commands import run

pytestmark = pytest.mark.usefixtures("starts_ray")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("machines", "argument", "message"),
    [
        (Machines(workers=0), "workers", "workers=0 must be from 1 to 100000; leave it out to work in one process"),
        (Machines(workers=-2), "workers", "workers=-2 must be from 1"),
        (Machines(workers=10**9), "workers", "workers=1000000000 must be from 1"),
        (Machines(workers=True), "workers", "workers=True must be a whole number"),
        (Machines(workers="2"), "workers", "workers='2' must be a whole number"),  # pyright: ignore[reportArgumentType]
        (Machines(ray=""), "ray", "ray='' is no address; use auto, local, or one such as"),
        (Machines(ray="nowhere"), "ray", "ray='nowhere' is no address"),
        (Machines(ray="host:0"), "ray", "ray='host:0' is no address"),
        (Machines(ray="host:65536"), "ray", "ray='host:65536' is no address"),
        (Machines(ray="http://host:80"), "ray", "ray='http://host:80' is no address"),
        (Machines(ray=3), "ray", "ray=3 is no address"),  # pyright: ignore[reportArgumentType]
    ],
    ids=str,
)
def test_what_is_no_place(machines: Machines, argument: str, message: str):
    with pytest.raises(ProbesweepError) as caught:
        machines.check()
    assert isinstance(caught.value, ValueError)
    assert caught.value.argument == argument
    assert str(caught.value).startswith(message)


def test_places():
    assert not Machines().many
    for machines in (Machines(1), Machines(2, "local"), Machines(ray="auto"), Machines(ray="ray://[::1]:10001")):
        machines.check()
        assert machines.many


def test_ray_that_is_not_installed_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    Machines().check()
    with pytest.raises(ProbesweepError, match=r'ray is not installed; pip install "probesweep\[ray\]"'):
        Machines(workers=2).check()


def test_importing_the_commands_imports_no_ray():
    code = "import sys, probesweep.commands.main, probesweep_ray, gpu_probes.search.sweep; print('ray' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _silent(connection: socket.socket) -> None:
    connection.recv(100)
    time.sleep(0.2)


def _of_the_web(connection: socket.socket) -> None:
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "why"),
    [(None, "Connection refused"), (_silent, "what answers is not Ray"), (_of_the_web, "what answers is not Ray")],
)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_ray_answers(serve: Callable[[socket.socket], None] | None, why: str, scheme: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                assert serve is not None
                serve(connection)

        if serve is None:
            server.close()
        else:
            Thread(target=answer, daemon=True).start()
        with pytest.raises(ProbesweepError) as caught:
            check_answers(Machines(ray=address))
    assert str(caught.value).startswith(f"no Ray answers at ray={address!r} ({why}); start one with: ray start --head")
    assert caught.value.argument == "ray"


def test_a_training_does_not_begin_without_its_cluster(tmp_path: Path):
    done = run("train", "--train_activations", "a", "--test_activations", "b", "--output_dir", "c", "--ray", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ray nowhere is no address; use auto, local, or one such as")


def node(cpus: int, gpus: int = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": 1e9}


@pytest.mark.parametrize(
    ("machines", "gpus", "nodes", "cluster"),
    [
        (Machines(ray="auto"), None, [node(4), node(4)], Cluster(2, 4, 0, 4, 1)),
        (Machines(4, "auto"), False, [node(4), node(4)], Cluster(4, 2, 0, 2, 2)),
        (Machines(3, "auto"), None, [node(4), node(2)], Cluster(3, 2, 0, 2, 2)),
        (Machines(2, "auto"), None, [node(8), node(1)], Cluster(2, 4, 0, 4, 2)),
        (Machines(ray="auto"), None, [node(0), node(6)], Cluster(1, 6, 0, 6, 1)),
        (Machines(ray="auto"), None, [node(8, 2), node(16, 4), node(8)], Cluster(6, 4, 1, 4, 4)),
        (Machines(2, "auto"), True, [node(8, 2), node(16, 4)], Cluster(2, 4, 1, 4, 2)),
        (Machines(ray="auto"), False, [node(8, 2), node(8)], Cluster(2, 8, 0, 8, 1)),
    ],
    ids=str,
)
def test_nodes_are_shared_among_workers(machines: Machines, gpus: bool | None, nodes: list, cluster: Cluster):
    assert _shares(machines, gpus, nodes) == cluster


def test_workers_that_no_node_has_room_for():
    with pytest.raises(ProbesweepError, match=r"workers=3 are too many: there are 2 CPUs in the cluster; use fewer"):
        _shares(Machines(3, "auto"), None, [node(1), node(1)])
    with pytest.raises(ProbesweepError, match=r"workers=3 are too many: there are 2 GPUs in the cluster, one for each"):
        _shares(Machines(3, "auto"), None, [node(9, 2)])
    with pytest.raises(ProbesweepError, match=r"ray='auto' has no GPUs; use device='cpu'"):
        _shares(Machines(ray="auto"), True, [node(9)])
    assert Machines(2).local_workers(0) == 2
    assert Machines(ray="local").local_workers(4) == 4
    with pytest.raises(ProbesweepError, match=r"workers=2 are too many: there are 1 GPU, one for each worker; use"):
        Machines(2).local_workers(1)
