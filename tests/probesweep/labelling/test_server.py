"""The engine openai: against a real server, and against one that fails in every way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from probesweep.errors import RequestError
from probesweep.labelling import progress
from probesweep.labelling.engines import openai as server_engine
from probesweep.labelling.labelling import Labelling, progress_of
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS


class Fake:
    """A server of the protocol whose answers a test decides.

    Attributes
    ----------
    requests : list of dict
        Bodies of the chat requests, in order.
    answer : callable
        Number of the request -> status and document.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.models = ["m", "other"]
        self.answer: Callable[[int], tuple[int, Any]] = lambda _: (200, reply("The answer is a."))
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                fake.keys.add(self.headers["Authorization"])
                status, models = (404, {}) if not fake.models else (200, {"data": [{"id": m} for m in fake.models]})
                if fake.models == ["locked"]:
                    status, models = 401, {"error": {"message": "bad key"}}
                self._send(status, {"object": "list", **models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append(body)
                self._send(*fake.answer(len(fake.requests)))

            def _send(self, status: int, document: Any) -> None:
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that goes away in mid-request is none of its business.
        self._server.handle_error = lambda *_: None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(text: str, reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    usage = {"completion_tokens": 5, "prompt_tokens": 3, "total_tokens": 8}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.close()


@pytest.fixture
def given(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = tmp_path / "questions.parquet"
    pd.DataFrame({"question": QUESTIONS[:4], "answer": list("abca")}).to_parquet(path)
    monkeypatch.setattr(server_engine, "_RETRIES", 2)
    return {
        "model": "m",
        "engine": "openai",
        "base_url": fake.url,
        "dataset_path": path,
        "output_path": tmp_path / "out.parquet",
        "verifier": "contains",
        "n_samples": 3,
        "temperature": 0.7,
        "top_k": 20,
        "max_new_tokens": 9,
        "concurrency": 4,
    }


def _flags(given: dict[str, Any]) -> list[object]:
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def test_each_attempt_is_a_request_with_a_seed_of_its_own(
    given: dict[str, Any], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    done = run("label", *_flags(given), "--system_prompt", "Be brief.")
    assert done.returncode == 0, done.stderr
    assert len(fake.requests) == 12
    assert len({request["seed"] for request in fake.requests}) == 12
    for request in fake.requests:
        assert request["messages"][0] == {"role": "system", "content": "Be brief."}
        assert [request[name] for name in ("temperature", "top_k", "max_tokens", "top_p")] == [0.7, 20, 9, 1.0]
    frame = pd.read_parquet(given["output_path"])
    assert frame["success_rate"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert frame["formatted_prompt"].isna().all()
    assert fake.keys == {"Bearer secret-of-the-test"}
    assert b"secret-of-the-test" not in given["output_path"].read_bytes()


def test_what_was_cut_off_counts_as_asked(given: dict[str, Any], fake: Fake) -> None:
    fake.answer = lambda _: (200, reply("The answer is a.", "length"))
    summary = Labelling(**given).run()
    assert (summary.n_truncated, summary.n_correct, summary.n_judged) == (12, 0, 12)
    assert "12 of 12 attempts (100.0%) were cut off" in str(summary)
    summary = Labelling(**{**given, "truncated": "drop", "output_path": given["output_path"].with_stem("b")}).run()
    assert (summary.n_truncated, summary.n_judged, summary.n_without_rate) == (12, 0, 4)


def test_a_server_that_is_busy_is_asked_again(given: dict[str, Any], fake: Fake) -> None:
    fake.answer = lambda n: (429, {"error": {"message": "slow down"}}) if n in (2, 5) else (200, reply("a"))
    Labelling(**given).run()
    assert len(fake.requests) == 14


def test_what_is_done_is_kept_when_a_server_ends(given: dict[str, Any], fake: Fake) -> None:
    given = {**given, "concurrency": 1}
    fake.answer = lambda n: (200, reply("a")) if n <= 8 else (503, {"error": {"message": "overloaded"}})
    done = run("label", *_flags(given))
    assert done.returncode == 2
    assert "answers 503 (" in done.stderr
    assert "run the same command again" in done.stderr
    assert progress_of(given["output_path"]).exists()
    n_before = len(fake.requests)
    fake.answer = lambda _: (200, reply("a"))
    assert run("label", *_flags(given)).returncode == 0
    # Two of the four questions were done.
    assert len(fake.requests) - n_before == 6


def test_a_server_without_a_list_of_models_is_asked_for_one_token(given: dict[str, Any], fake: Fake) -> None:
    fake.models = []
    Labelling(**given).run()
    assert len(fake.requests) == 13
    assert fake.requests[0]["max_tokens"] == 1


def test_mistakes_are_one_line(given: dict[str, Any], fake: Fake) -> None:
    fake.answer = lambda _: (404, {"error": {"message": "The model `n` does not exist."}})
    done = run("label", *_flags({**given, "model": "n"}))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no model 'n'" in done.stderr
    assert "it has m, other" in done.stderr
    fake.models = ["locked"]
    done = run("label", *_flags(given))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "refuses the key; set OPENAI_API_KEY" in done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    done = run("label", *_flags({**given, "base_url": nowhere}))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{nowhere} cannot be reached" in done.stderr
    addresses = {"localhost:8000": "is no address", "http://[bad": "is no address", "http://x:abc/v1": "is no address"}
    addresses |= {"http://me:pw@host/v1": "OPENAI_API_KEY", "http://host/v1?key=secret": "OPENAI_API_KEY"}
    for wrong, words in addresses.items():
        done = run("label", *_flags({**given, "base_url": wrong}))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    assert not given["output_path"].exists()
    assert not progress_of(given["output_path"]).exists()


@pytest.mark.parametrize(
    ("reply_of", "words"),
    [
        ({"choices": []}, "answers without choices"),
        ({"error": {"message": "no credits", "code": 402}}, "no credits"),
        ("<html>", "something else than this protocol|answers without choices"),
        (None, "something else than this protocol|answers without choices"),
    ],
    ids=["no choices", "error", "text", "null"],
)
def test_an_answer_of_another_shape_is_one_line(given: dict[str, Any], fake: Fake, reply_of: Any, words: str) -> None:
    fake.answer = lambda _: (200, reply_of)
    done = run("label", *_flags(given))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert any(word in done.stderr for word in words.split("|")), done.stderr


def test_a_request_that_is_refused_is_not_called_a_missing_model(given: dict[str, Any], fake: Fake) -> None:
    fake.models = []
    fake.answer = lambda _: (400, {"error": {"message": "seed must not be given"}})
    done = run("label", *_flags(given))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "answers 400 (" in done.stderr
    assert "seed must not be given" in done.stderr


@pytest.mark.parametrize("key", ["sk-SECRET\n", "sk-SECRET\x07x", "sk-SÉCRET"])
def test_a_key_is_never_shown(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    done = run("label", *_flags(given))
    assert done.returncode == (0 if key == "sk-SECRET\n" else 2)
    assert done.stderr.count("\n") == (done.returncode == 2)
    assert "SECRET" not in done.stdout + done.stderr + capfd.readouterr().err
    assert "SÉCRET" not in done.stderr


def test_ctrl_c_does_not_wait_for_what_is_on_its_way(given: dict[str, Any], fake: Fake) -> None:
    def slow(_: int) -> tuple[int, Any]:
        time.sleep(20)
        return 200, reply("a")

    fake.answer = slow
    # Processes that run tests for another ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            Labelling(**given).run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 10


def test_without_the_client_its_extra_is_named(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    done = run("label", *_flags(given))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert 'pip install "probesweep[openai]"' in done.stderr


@pytest.fixture(scope="module")
def real_server(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """``transformers serve`` with a tiny model; the last test kills it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tiny_model("llama"))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    # Where it looks for models to list.
    (folder / "hub").mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_CACHE": str(folder / "hub")}
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_real_server_answers_as_the_model_in_this_process(
    real_server: tuple[str, Any], tiny_model: Callable[[str], Path], given: dict[str, Any], tmp_path: Path
) -> None:
    greedy = {"temperature": 0, "n_samples": 1, "top_k": None, "model": str(tiny_model("llama"))}
    Labelling(**{**given, **greedy, "base_url": real_server[0]}).run()
    here = {**given, **greedy, "engine": "transformers", "base_url": None, "output_path": tmp_path / "here.parquet"}
    Labelling(**here).run()
    served, local = (pd.read_parquet(path) for path in (given["output_path"], here["output_path"]))
    assert [one[0]["text"] for one in served["attempts"]] == [one[0]["text"] for one in local["attempts"]]


@pytest.mark.slow
def test_a_real_server_that_is_killed_leaves_what_is_done(
    real_server: tuple[str, subprocess.Popen[bytes]], tiny_model: Callable[[str], Path], given: dict[str, Any]
) -> None:
    url, process = real_server
    given = {**given, "base_url": url, "model": str(tiny_model("llama")), "top_k": None, "concurrency": 1}
    labelling = Labelling(**{**given, "max_new_tokens": 60})
    frame = pd.concat([pd.read_parquet(given["dataset_path"])] * 1000)
    frame.to_parquet(given["dataset_path"])

    def kill_when_some_are_done() -> None:
        path = progress_of(given["output_path"])
        while not path.exists() or progress.is_empty(path):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_when_some_are_done, daemon=True)
    killer.start()
    with pytest.raises(RequestError, match="what is done is kept: run the same command again"):
        labelling.run()
    killer.join()
    assert not progress.is_empty(progress_of(given["output_path"]))
