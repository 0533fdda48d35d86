"""A probe away from where it was trained: its model elsewhere, in a service, or never recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaModel

from activation_store import Extraction, InputError, export_pt, open_activations
from activation_store.capture import hidden_states
from gpu_probes import sweep
from gpu_probes.results.folder import Run
from probesweep import Probe, ProbesweepError, RequestError
from probesweep.use.card import Card
from probesweep.use.place import ModelPlace
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS, save_model
from tests.helpers.result_folders import sign

pytestmark = pytest.mark.slow


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def recorded(results: Path, to: Path, **prompts: object) -> Path:
    """A copy whose card says something else of the prompts; what it leaves out is of an earlier version."""
    shutil.copytree(results, to)
    card = read(to / "probe.json")
    kept = {name: value for name, value in {**card["prompts"], **prompts}.items() if value is not None}
    (to / "probe.json").write_text(json.dumps({**card, "prompts": {**dict.fromkeys(card["prompts"]), **kept}}))
    if "model" in prompts:
        described = read(to / "run.json")
        (to / "run.json").write_text(json.dumps({**described, "model": prompts["model"]}))
    sign(to)
    return to


def in_python(code: str, *absent: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where some packages cannot be imported."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in absent), code]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=cwd, check=False
    )


# Where the model is


def test_a_folder_is_recorded_by_its_absolute_path(tiny_model, tmp_path, monkeypatch):
    """However it was named, from wherever the probe is used."""
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    questions = [f"{question} ({copy})" for copy in range(3) for question in QUESTIONS]
    rates = np.random.default_rng(0).random(len(questions))
    pd.DataFrame({"question": questions, "success_rate": rates}).to_parquet(tmp_path / "d.parquet")
    monkeypatch.chdir(tmp_path)
    data = ("--dataset_path", "d.parquet", "--use_chat_template", "--layers", "0,1")
    assert run("extract", "--model", "model", "--output_path", "s.zarr", *data).returncode == 0
    stores = ("--train_activations", "s.zarr", "--test_activations", "s.zarr")
    assert run("train", *stores, "--output_dir", "out", "--k_fold", "--no_nested_cv").returncode == 0
    assert read(tmp_path / "out/probe.json")["prompts"]["source"] == {
        "kind": "folder", "place": str(tmp_path / "model"),
    }  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("predict", "--probe", "../out", "--text", "Hi", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("model", "weights", "kind", "place"),
    [
        ("smollm2", "sha256 0", "bundled", "smollm2"),
        ("org/name", "hub commit 0", "hub", "org/name"),
        ("org/name", "sha256 0", "folder", "org/name"),
        ("models/x.gguf", "sha256 0", "gguf", "models/x.gguf"),
    ],
)
def test_cards_of_earlier_versions_tell_folders_from_hub_ids(model, weights, kind, place):
    assert ModelPlace.recorded(model, weights) == ModelPlace(kind, place)


@pytest.mark.parametrize("source", [True, False])
def test_a_model_that_has_moved_is_said_before_anything_heavy_is_imported(source, trained, tmp_path):
    """And without a look at the hub, whether or not the card is of this version."""
    gone = (
        {"source": {"kind": "folder", "place": "/gone/org/name"}} if source else {"source": None, "model": "org/name"}
    )
    results = recorded(trained / "results", tmp_path / "results", **gone)
    place = "/gone/org/name" if source else "org/name"
    command = "from probesweep.commands.main import main\nsys.argv = ['probesweep', *{}]\nmain()"
    arguments = ["predict", "--probe", "results", "--text", "Hi"]
    done = in_python(command.format(arguments), "torch", "transformers", "huggingface_hub", "pyarrow", cwd=tmp_path)
    wanted = f"the model of the probe in results is not at {place} any more; give its new place with"
    assert (done.returncode, done.stderr) == (2, f"error: {wanted} --model\n")
    done = in_python(
        command.format([*arguments, "--model", "./typo"]), "torch", "transformers", "huggingface_hub", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --model ./typo is neither a folder nor a file; give the place of the model")
    done = in_python("from probesweep import Probe\nProbe.load('results')", "transformers", cwd=tmp_path)
    assert f"RequestError: {wanted} model=..." in done.stderr
    with pytest.raises(RequestError, match="any more") as raised:
        Probe.load(results)
    assert raised.value.argument == "model"


def test_a_probe_reads_its_model_at_the_new_place(trained, tiny_model, tmp_path):
    results = recorded(trained / "results", tmp_path / "r", source={"kind": "folder", "place": "/gone"})
    shutil.copytree(tiny_model("llama"), tmp_path / "moved")
    there = Probe.load(trained / "results").score(["Hi"])
    np.testing.assert_array_equal(Probe.load(results, model=str(tmp_path / "moved")).score(["Hi"]), there)


def test_another_model_is_refused_when_the_probe_is_loaded(trained, tmp_path):
    save_model(tmp_path / "other", "qwen2")
    with pytest.raises(InputError, match=r"has another weights .* than the probe was trained on") as raised:
        Probe.load(trained / "results", model=str(tmp_path / "other"))
    assert raised.value.argument == "model"


def test_weights_are_loaded_with_the_first_prompt_or_at_once(trained, monkeypatch):
    loads: list[object] = []
    whole = hidden_states.load_decoder
    monkeypatch.setattr(
        hidden_states, "load_decoder", lambda *args, **kwargs: loads.append(1) or whole(*args, **kwargs)
    )
    probe = Probe.load(trained / "results")
    assert not loads
    expected = probe.score(["Hi"])
    assert len(loads) == 1
    ready = Probe.load(trained / "results", preload=True)
    assert len(loads) == 2
    np.testing.assert_array_equal(ready.score(["Hi"]), expected)
    assert len(loads) == 2


def test_a_model_in_memory_is_given_as_it_is(tiny_model, tmp_path):
    """And a probe of one has no other place where its model is."""
    model, tokenizer = (kind.from_pretrained(tiny_model("llama")) for kind in (AutoModelForCausalLM, AutoTokenizer))
    questions = [f"{question} ({copy})" for copy in range(3) for question in QUESTIONS]
    rates = np.random.default_rng(0).random(len(questions))
    data = pd.DataFrame({"question": questions, "success_rate": rates})
    options = {"tokenizer": tokenizer, "use_chat_template": True, "layers": [0, 1]}
    Extraction(model.eval(), data, tmp_path / "s.zarr", **options).run()
    stores = ("--train_activations", tmp_path / "s.zarr", "--test_activations", tmp_path / "s.zarr")
    assert run("train", *stores, "--output_dir", tmp_path / "out", "--k_fold", "--no_nested_cv").returncode == 0
    probe = Probe.load(tmp_path / "out", model=model, tokenizer=tokenizer)
    expected = read(tmp_path / "out/best_probe_predictions.json")["train_predictions"]
    np.testing.assert_allclose(probe.predict(questions), expected, rtol=1e-4, atol=1e-5)
    assert read(tmp_path / "out/probe.json")["prompts"]["source"]["kind"] == "memory"
    done = run("predict", "--probe", tmp_path / "out", "--text", "Hi")
    assert (done.returncode, "was in memory" in done.stderr) == (2, True)


# How often the model runs


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, int]]:
    """Rows and tokens of every forward pass of the model since the list was cleared."""
    found: list[tuple[int, int]] = []
    whole = LlamaModel.forward

    def forward(self, *args, **kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        found.append(tuple(ids.shape))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    return found


ALIKE = [f"What is {n} + {m}?" for n in range(4) for m in range(4)]


def loop(probe: Probe, texts: list[str], size: int) -> np.ndarray:
    return np.concatenate([probe.score(texts[start : start + size]) for start in range(0, len(texts), size)])


@pytest.mark.parametrize("first", [1, 2, 16])
def test_batches_are_compared_with_single_prompts_once(first, trained, passes):
    """A service that takes prompts as they come pays for that with its first calls, and never again."""
    probe = Probe.load(trained / "results")
    scores = [loop(probe, ALIKE, size) for size in (first, 2, 1)]
    passes.clear()
    for size in (1, 2, 8, 16):
        scores.append(loop(probe, ALIKE, size))
        assert [rows for rows, _ in passes] == [size] * (len(ALIKE) // size)
        passes.clear()
    for one in scores:
        np.testing.assert_allclose(one, scores[0], rtol=1e-4, atol=1e-5)


def test_a_loop_of_pairs_costs_fewer_passes_than_single_prompts(trained, passes):
    """From the first call on, whatever is compared and run once."""
    texts = [f"{text} ({copy})" for copy in range(3) for text in ALIKE]
    loop(Probe.load(trained / "results"), texts, 2)
    assert len(passes) < len(texts)
    passes.clear()
    Probe.load(trained / "results").score(texts)
    assert len(passes) < len(texts) / 3


def test_what_prompts_begin_with_is_run_once(trained, passes):
    """Also where each call has one of them; a prompt that begins otherwise is run whole."""
    alike = [f"Answer with just the number, and nothing else. {text}" for text in ALIKE]
    probe = Probe.load(trained / "results")
    loop(probe, alike, 1)
    texts = [alike[0], ALIKE[0], alike[1]]
    expected = np.concatenate([Probe.load(trained / "results").score([text]) for text in texts])
    passes.clear()
    np.testing.assert_allclose(loop(probe, texts, 1), expected, rtol=1e-4, atol=1e-5)
    saved = [
        len(probe._loaded.encode([text]).row(0)) - n_tokens for text, (_, n_tokens) in zip(texts, passes, strict=True)
    ]
    assert saved[0] == saved[2] >= 8
    assert saved[1] == 0


def test_long_and_short_prompts_are_not_padded_to_each_other(trained, passes):
    """A batch of one long prompt and many short ones would run mostly padding."""
    probe = Probe.load(trained / "results")
    texts = ["word " * 40, *ALIKE[:4]]
    probe.score(texts)
    passes.clear()
    probe.score(texts)
    assert [rows for rows, _ in passes] == [1, 4]


# A service


def test_a_service_sees_no_progress_bars(trained, tmp_path):
    code = f"""from probesweep import Probe
from tqdm import tqdm
probe = Probe.load({str(trained / "results")!r}, preload=True)
probe.score(["Hi", "you"])
Probe.load({str(trained / "results")!r}).score(["Hi"])
print(list(tqdm(range(2), desc="its own")))"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import os; os.environ.pop('TQDM_DISABLE', None)\n{code}"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    # A bar of the service's own code is drawn as ever.
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line]
    assert lines
    assert all(line.startswith("its own") for line in lines)
    assert done.stdout == "[0, 1]\n"


# Old files


@pytest.fixture(scope="module")
def of_pt(trained, tmp_path_factory) -> Path:
    """Results of a training on the same activations in `.pt` files."""
    folder = tmp_path_factory.mktemp("pt")
    for split in ("train", "test"):
        export_pt(open_activations(trained / f"{split}.zarr"), folder / f"{split}.pt")
    done = run(
        "train", "--train_activations", folder / "train.pt", "--test_activations", folder / "test.pt", "--output_dir",
        folder / "results", "--k_fold", "--alphas", "1,10",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "results"


def test_a_probe_of_a_pt_predicts_once_model_and_template_are_given(of_pt, tiny_model):
    model, texts = str(tiny_model("llama")), ["Hi", "What is 2 + 3?"]
    rows = [row for split in ("test",) for row in open_activations(of_pt.parent / "test.pt").labels["label"]]
    assert len(rows) == 2 * len(QUESTIONS)
    prompts = [f"{question} (test {copy})" for copy in range(2) for question in QUESTIONS]
    expected = read(of_pt / "best_probe_predictions.json")["test_predictions"]
    probe = Probe.load(of_pt, model=model, use_chat_template=True)
    np.testing.assert_allclose(probe.predict(prompts), expected, rtol=1e-4, atol=1e-5)
    counted = Probe.load(of_pt, model=model, use_chat_template=True, eoi_tokens=6, dtype="float32")
    np.testing.assert_allclose(counted.predict(prompts), expected, rtol=1e-4, atol=1e-5)
    done = run(
        "predict", "--probe", of_pt, "--model", model, "--use_chat_template", "--text", texts[0], "--text", texts[1],
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([row["probe_score"] for row in json.loads(done.stdout)], probe.score(texts), rtol=1e-6)


@pytest.mark.parametrize("join", ["layers", "mean", "1@-1,0@-2"])
def test_joined_cells_of_a_pt(join, of_pt, tiny_model, tmp_path):
    files = [of_pt.parent / f"{split}.pt" for split in ("train", "test")]
    done = run(
        "train", "--train_activations", files[0], "--test_activations", files[1], "--output_dir", tmp_path, "--k_fold",
        "--join", join,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    probe = Probe.load(tmp_path, model=str(tiny_model("llama")), use_chat_template=True)
    prompts = [f"{question} (test {copy})" for copy in range(2) for question in QUESTIONS]
    expected = read(tmp_path / "best_probe_predictions.json")["test_predictions"]
    np.testing.assert_allclose(probe.predict(prompts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "wrong", "argument"),
    [
        ({}, r"does not say how its prompts were made; give the model with model=\.\.\. \(the file names '", "model"),
        ({"model": "llama", "eoi_tokens": 2}, r"eoi_tokens=2 is too few: .* give 5 or more", "eoi_tokens"),
        ({"model": "gpt2", "use_chat_template": True}, "this model has no chat template", "use_chat_template"),
        ({"model": "llama", "dtype": "float8"}, "float8", "dtype"),
        (
            {"model": "wide", "use_chat_template": True},
            "has layers 0 to 3 of 64 features, and the probe reads 32",
            "model",
        ),
        ({"model": "tailed", "use_chat_template": True}, "give the template that the .pt was made with", None),
    ],
)
def test_what_a_pt_needs_to_be_told(options, wrong, argument, of_pt, tiny_model, tmp_path):
    from tests.helpers import models

    if "model" in options:
        kinds = {
            "llama": ("llama", models.CHATML, {}),
            "gpt2": ("gpt2", None, {}),
            "wide": ("llama", models.CHATML, {"hidden_size": 64}),
        }
        kinds["tailed"] = ("llama", models.CHATML.replace("assistant\n", "assistant\n<think>\n"), {})
        family, template, changes = kinds[options["model"]]
        torch.manual_seed(0)
        config = models.CONFIGS[family]()
        for name, value in changes.items():
            setattr(config, name, value)
        models.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        models.train_tokenizer(template).save_pretrained(tmp_path / "model")
        options = {**options, "model": str(tmp_path / "model")}
    with pytest.raises((InputError, RequestError), match=wrong) as raised:
        Probe.load(of_pt, **options)
    assert raised.value.argument == argument


@pytest.mark.parametrize(
    ("flag", "option"),
    [
        ("--use_chat_template", {"use_chat_template": True}),
        ("--eoi_tokens 3", {"eoi_tokens": 3}),
        ("--dtype float32", {"dtype": "float32"}),
    ],
)
def test_results_that_say_how_prompts_were_made_are_not_told_otherwise(flag, option, trained):
    done = run("predict", "--probe", trained / "results", "--text", "Hi", *flag.split())
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {flag} is for probes that were trained on a .pt; ")
    with pytest.raises(RequestError, match="leave it out"):
        Probe.load(trained / "results", **option)


def test_cards_of_a_pt_by_earlier_versions_have_no_places(of_pt, tiny_model, tmp_path):
    results = shutil.copytree(of_pt, tmp_path / "results")
    card = read(results / "probe.json")
    del card["places"]
    (results / "probe.json").write_text(json.dumps(card))
    sign(results)
    assert Card.load(results).places is None
    assert Run.load(results).label == "label"
    options = {"model": str(tiny_model("llama")), "use_chat_template": True}
    found, expected = (Probe.load(each, **options).score(["Hi"]) for each in (results, of_pt))
    np.testing.assert_array_equal(found, expected)


def test_a_sweep_saved_from_python_is_a_probe(tiny_model, dataset, tmp_path):
    table = pd.read_parquet(dataset)
    both = pd.concat([table, table.assign(question=table["question"] + " again")])
    store = Extraction(
        str(tiny_model("llama")), both, tmp_path / "s.zarr", use_chat_template=True, layers=[1, 2], device="cpu"
    ).run()
    given = {"k_fold": True, "n_folds": 3, "device": "cpu"}
    result = sweep(store, store.labels["success_rate"], store, store.labels["success_rate"], **given)
    probe = Probe.load(result.save(tmp_path / "saved"))
    assert (probe.layer, probe.position) == (result.best.cell.layer, result.best.cell.position)
    expected = result.test_predictions[result.best.position_index, result.best.layer_index, :, 0]
    np.testing.assert_allclose(probe.predict(list(both["question"])), expected, atol=1e-5)
    tensor = probe.direction_tensor()
    assert tensor.shape == (store.n_features,)
    assert float(tensor.norm()) == pytest.approx(1, rel=1e-6)
    cell, labels = store.cell(1, -1), store.labels["success_rate"]
    in_memory = sweep(cell, labels, cell, labels, **given)
    # Which layer and position that cell is, nobody can say.
    with pytest.raises(ProbesweepError, match="fitted to an array, which does not say which layers and positions"):
        Probe.load(in_memory.save(tmp_path / "arrays"), model=str(tiny_model("llama")), use_chat_template=True)
    done = run("transfer", tmp_path / "arrays", tmp_path / "s.zarr")
    assert done.returncode == 2
    assert "the probes were fitted to an array" in done.stderr
