"""What all commands share at a terminal: help, versions, quiet, JSON, tracebacks, completion, progress."""

import json
import os
import pty
import subprocess
import termios
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from probesweep.commands.main import probesweep
from tests.helpers.commands import PROBESWEEP, run, run_process
from tests.helpers.models import QUESTIONS

COMMANDS = probesweep.commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example_of_it(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"Example: probesweep {name} " in " ".join(done.stdout.split())
    for flag in ("--quiet", "--json", "--debug"):
        assert flag in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_every_command_has_a_help_text(name):
    options = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.slow
def test_version_names_what_decides_results():
    done = run_process("--version")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"probesweep {version('probesweep')}"
    for name in ("torch", "transformers", "zarr"):
        assert f"{name} {version(name)}" in lines
    assert lines[-1].startswith("device: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_the_shell_takes(shell):
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert "_PROBESWEEP_COMPLETE" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_completion_offers_commands_and_flags():
    def offered(words: str) -> str:
        env = {**os.environ, "_PROBESWEEP_COMPLETE": "bash_complete", "COMP_WORDS": words}
        env["COMP_CWORD"] = str(len(words.split()) - 1)
        return subprocess.run([PROBESWEEP], env=env, capture_output=True, text=True, check=True).stdout

    assert "plain,transfer" in offered("probesweep tra")
    assert "plain,--permutations" in offered("probesweep train --per")


def extract(tiny_model, dataset: Path, output: Path, *options: object) -> tuple[object, ...]:
    return (
        "extract", "--model", tiny_model("llama"), "--dataset_path", dataset, "--output_path", output,
        "--use_chat_template", "--layers", "0,1", *options,
    )  # fmt: skip


@pytest.mark.slow
def test_json_is_one_document_and_quiet_is_silent(tiny_model, dataset, tmp_path):
    store = tmp_path / "s.zarr"
    quiet = run(*extract(tiny_model, dataset, store, "--quiet"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    def document(*arguments: object):
        done = run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    described = document(*extract(tiny_model, dataset, store))
    assert described == document("inspect", store)
    assert described["shape"] == {"sample": len(QUESTIONS), "layer": 2, "position": 5, "feature": 32}
    assert "preview" in document(*extract(tiny_model, dataset, tmp_path / "o.zarr", "--dry_run"))
    assert document("verify", store) == {"store": str(store), "n_samples": len(QUESTIONS), "problems": []}
    train = ("train", "--train_activations", store, "--test_activations", store, "--output_dir", tmp_path / "out")
    found = document(*train, "--k_fold", "--n_folds", 3)["success_rate"]
    best = json.loads((tmp_path / "out/best_probe_predictions.json").read_text())
    assert found["best"]["cv_score"] == best["cv_score"]
    assert found["best"]["layer"] == best["best_layer_number"]
    assert found["nested_cv_score"] == json.loads((tmp_path / "out/inference.json").read_text())["nested_cv"]["score"]
    scores = document("transfer", tmp_path / "out", store)
    assert scores["probes"][str(tmp_path / "out")][0]["best"] == pytest.approx(found["best"]["test_score"])
    assert document("export", store, tmp_path / "a.pt")["n_bytes"] == (tmp_path / "a.pt").stat().st_size
    assert document("import", tmp_path / "a.pt", tmp_path / "a.zarr")["labels"] == ["label"]
    # What is asked for is answered, however quiet.
    assert "all 11 samples are complete and undamaged" in run("verify", store, "--quiet").stdout
    # The options may stand before the command, too.
    assert json.loads(run("--json", "verify", store).stdout) == document("verify", store)
    assert run("--quiet", *extract(tiny_model, dataset, store)).stdout == ""


@pytest.mark.slow
def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path):
    plain = run_process("verify", tmp_path / "none.zarr")
    debug = run_process("verify", tmp_path / "none.zarr", "--debug")
    assert plain.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr
    assert debug.returncode != 0


def test_a_fault_of_ours_is_one_line_that_says_so(tmp_path, monkeypatch):
    def fail(*_args):
        raise KeyError("lost")

    monkeypatch.setattr("activation_store.ActivationStore.open", fail)
    done = run("verify", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: KeyError: 'lost'; this is a bug in probesweep: please report it with the output of --debug\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_at_a_terminal_unless_quiet(quiet, tiny_model, dataset, tmp_path):
    command = [PROBESWEEP, *map(str, extract(tiny_model, dataset, tmp_path / "s.zarr"))]
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 80))
    env = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    process = subprocess.Popen(
        [*command, *(["--quiet"] if quiet else [])], stdout=subprocess.DEVNULL, stderr=other_end, env=env
    )
    os.close(other_end)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # Linux's word for the end
            break
    os.close(terminal)
    assert process.wait() == 0, shown
    assert (b"11/11" in shown) is not quiet
    assert (b"loading" in shown) is not quiet
    assert not (quiet and shown)
