"""The stage that makes the labels: it runs first, once, and again only for what an edit touches."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from activation_store import ActivationStore
from probesweep import Experiment, RequestError
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow

EXPERIMENT = """\
output_dir = "out"

[model]
model = "model"

[data]
train_dataset = "train.parquet"
test_dataset = "test.parquet"
use_chat_template = true
layers = [0, 1]

[label]
verifier = "python:judge.py:judge"
n_samples = 6
max_new_tokens = 5

[probe]
alphas = [1, 10]

[statistics]
k_fold = true
n_folds = 3
permutations = 0
"""


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Path:
    for split, copies in {"train": 3, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        pd.DataFrame({"question": questions, "answer": "a"}).to_parquet(tmp_path / f"{split}.parquet")
    model = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    # Most answers end by themselves.
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 400, 2))}))
    (tmp_path / "judge.py").write_text("def judge(text, row):\n    return len(text) % 2 == 0\n")
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def said_of(path: Path) -> list[str]:
    said: list[str] = []
    Experiment.load(path).run(said.append)
    return said


def _stages(path: Path) -> list[str]:
    said = said_of(path)
    return [line.partition(":")[0] + (": already done" if "already done" in line else "") for line in said]


def _change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_labels_come_first_and_are_made_once(experiment: Path) -> None:
    preview = run("run", "--dry_run", experiment)
    assert preview.returncode == 0, preview.stderr
    assert "label train     run: there is no" in preview.stdout
    stages = _stages(experiment)
    assert [stage for stage in stages if stage.startswith(("label", "extract"))] == [
        "label train",
        "label test",
        "extract train",
        "extract test",
    ]
    frame = pd.read_parquet(experiment.parent / "out/train.parquet")
    assert frame["success_rate"].nunique() > 2
    store = ActivationStore.open(experiment.parent / "out/train.zarr")
    assert store.labels["success_rate"].tolist() == frame["success_rate"].tolist()
    # The questions, not the prompts that the template makes of them.
    assert store.questions == frame["question"].tolist()
    again = _stages(experiment)
    assert [stage for stage in again if stage.startswith(("label", "extract", "train"))] == [
        "label train: already done",
        "label test: already done",
        "extract train: already done",
        "extract test: already done",
        "train: already done",
    ]
    # Another verifier: the same answers, judged again.
    attempts = [[one["text"] for one in of_row] for of_row in frame["attempts"]]
    (experiment.parent / "judge.py").write_text("def judge(text, row):\n    return len(text) % 3 == 0\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("probesweep.labelling.engines.local.LocalEngine.load", lambda _: pytest.fail("loads weights"))
        assert "label train: nothing is sampled; the attempts are judged again" in said_of(experiment)
    other = pd.read_parquet(experiment.parent / "out/train.parquet")
    assert [[one["text"] for one in of_row] for of_row in other["attempts"]] == attempts
    assert other["success_rate"].tolist() != frame["success_rate"].tolist()
    assert pd.read_parquet(experiment.parent / "out/train.1.parquet").equals(frame)
    # Another probe: nothing is judged.
    _change(experiment, "alphas = [1, 10]", "alphas = [3]")
    assert "label train: already done" in _stages(experiment)
    # Another number of attempts: new labels of the same prompts, and the old ones are kept.
    _change(experiment, "n_samples = 6", "n_samples = 4")
    stages = _stages(experiment)
    assert "label train" in stages
    assert "extract train: already done" in stages
    assert pd.read_parquet(experiment.parent / "out/train.parquet")["n_samples"].max() <= 4
    assert pd.read_parquet(experiment.parent / "out/train.2.parquet")["n_samples"].max() == 6


def test_what_is_said_to_the_model_is_what_is_extracted(experiment: Path) -> None:
    _change(experiment, "n_samples = 6", 'n_samples = 6\nsystem_prompt = "Be brief."')
    Experiment.load(experiment).run(lambda _: None)
    store = ActivationStore.open(experiment.parent / "out/train.zarr")
    prompts = pd.read_parquet(experiment.parent / "out/train.parquet")["formatted_prompt"].tolist()
    assert "Be brief." in prompts[0]
    assert store.questions == prompts


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("n_samples = 6", "n_samples = 6\ntemperature = 0", "temperature"),
        ('verifier = "python:judge.py:judge"', 'verifier = "magic"', "verifier in line"),
        ('verifier = "python:judge.py:judge"', "", "verifier is missing in [label]"),
        ('verifier = "python:judge.py:judge"', 'verifier = "python:nowhere.py:judge"', "nowhere.py"),
        ("n_samples = 6", 'n_samples = 6\nanswer_column = "solution"', "solution"),
        ("layers = [0, 1]", "layers = [0, 1]\ntruncate = true", "truncate in line"),
        ("n_samples = 6", 'engine = "openai"\nsystem_prompt = "x"', "engine in line"),
    ],
    ids=["greedy", "verifier", "no verifier", "no file", "column", "truncate", "server"],
)
def test_mistakes_are_named_with_their_line(experiment: Path, old: str, new: str, words: str) -> None:
    _change(experiment, old, new)
    with pytest.raises((RequestError, ValueError), match=r".") as raised:
        Experiment.load(experiment).run(lambda _: None)
    assert words in str(raised.value)
    assert str(experiment) in str(raised.value)
    assert not (experiment.parent / "out/train.parquet").exists()
