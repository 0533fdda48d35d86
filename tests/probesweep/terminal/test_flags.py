"""Arguments that the libraries name become flags, or keys of an experiment file; what users wrote stays as it is."""

import logging

import click
import pytest

from probesweep.commands.main import probesweep
from probesweep.experiment.file import ALL_KEYS
from probesweep.terminal.command import Terminal
from probesweep.terminal.flags import as_flags, as_keys


def context(command: str, **given: object) -> click.Context:
    root = click.Context(probesweep, info_name="probesweep")
    ctx = click.Context(probesweep.commands[command], parent=root, info_name=command)
    ctx.params = given
    return ctx


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("extract", "max_length=0 must be at least 1", "--max_length 0 must be at least 1"),
        ("extract", "give eoi_tokens=N instead", "give --eoi_tokens N instead"),
        ("extract", "choose fewer layers=..., or another disk", "choose fewer --layers, or another disk"),
        ("extract", "try dtype='float32'", "try --dtype float32"),
        ("extract", "layers=[0, 77]: this model has", "--layers 0,77: this model has"),
        ("extract", "layers=(3, -1) names layer 3 twice", "--layers 3,-1 names layer 3 twice"),
        ("extract", "label_column=['a', 'b c']", "--label_column a --label_column 'b c'"),
        ("extract", "output_path='a b' (output_path=...)", "--output_path 'a b' (--output_path)"),
        ("extract", "model='' is no name", "--model '' is no name"),
        ("extract", "model='a\\x1bb'", "--model 'a\\x1bb'"),
        (
            "extract",
            'chat_template_kwargs={"thinking": False}: a',
            "--chat_template_kwargs '{\"thinking\": false}': a",
        ),
        ("extract", "for bare questions add use_chat_template=True", "for bare questions add --use_chat_template"),
        ("extract", "use_chat_template=False is given", "leave out --use_chat_template is given"),
        ("extract", "or prefix_cache=False", "or --no_prefix_cache"),
        ("extract", "or prefix_cache=True", "or leave out --no_prefix_cache"),
        ("train", "seed=-1, alpha=1e-05.", "--seed -1, --alpha 1e-05."),
        ("train", "(alpha=inf)", "(--alpha inf)"),
        ("train", "alphas='1;2' is", "--alphas '1;2' is"),
        ("train", "alphas=[1.0, 10.0]", "--alphas 1.0,10.0"),
        ("train", "fewer folds (n_folds=..., nested_cv=False)", "fewer folds (--n_folds, --no_nested_cv)"),
        ("train", "join=LAYER@POSITION", "--join LAYER@POSITION"),
        # Names that differ, with another unit.
        ("train", "a larger budget_bytes=...", "a larger --budget_gib"),
        ("train", "budget_bytes=100 is too little", "--budget_gib is too little"),
        ("train", "sample_weight=... is negative", "--weight_column is negative"),
        # Of other commands.
        ("train", "extract it with group_column='topic'", "extract it with --group_column topic"),
        ("verify", "run the same extract again with repair=True", "run the same extract again with --repair"),
        # Arguments that the command line does not have.
        ("train", "give folds=... or classes=[0, 1]", "give folds=... or classes=[0, 1]"),
        ("export", "give another output_path=...", "give another OUTPUT_PATH"),
    ],
)
def test_arguments_become_flags(command, message, shown):
    assert as_flags(message, context(command)) == shown


@pytest.mark.parametrize(
    "message",
    [
        "/data/seed=1/train.zarr: no such store",
        "seed=1/train.zarr: no such store",
        "seed=1.zarr: no such store",
        "runs/k_fold=True: no such store",
        "row 0 is 'is k_fold=True better?'",
        'row 0 is "what is k_fold=True\'s default?", not text',
        "row 0 is 'it\\'s k_fold=True'",
        "the model's tail 'a seed=1 b' is not that of rows' seed=1x",
        "seed=one, seed =1, seed= 1, seed=1=2, a.seed=1",
        "no_such=1",
    ],
)
def test_what_only_looks_like_an_argument_stays(message):
    assert as_flags(message, context("train")) == message
    assert as_keys(message, ALL_KEYS, None) == message


def test_what_the_user_gave_stays():
    given = {"train_activations": "my seed=1 data/x.zarr", "label_column": ("k_fold=True",), "text": ("a n_folds=3 ?",)}
    message = "my seed=1 data is a file, column k_fold=True, text a n_folds=3 ?; use n_folds=3"
    shown = "my seed=1 data is a file, column k_fold=True, text a n_folds=3 ?; use --n_folds 3"
    assert as_flags(message, context("train", **given)) == shown
    assert as_keys(message, ALL_KEYS, given) == shown.replace("--n_folds 3", "n_folds = 3")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_length=0 must be at least 1", "max_length = 0 must be at least 1"),
        ("use k_fold=True, nested_cv=False", "use k_fold = true, nested_cv = false"),
        ("choose another label_column=...", "choose another label_column"),
        ("label_column=['a'], alphas=(1, 10)", "label_column = ['a'], alphas = [1, 10]"),
        ("give eoi_tokens=N; alpha=inf", "give eoi_tokens = N; alpha = inf"),
        ("chat_template_kwargs={'thinking': False}", "chat_template_kwargs = {thinking = false}"),
        ("a larger budget_bytes=...", "a larger budget_gib"),
        ("run it again with repair=True", "run it again with probesweep extract --repair"),
        ("give other test_activations=...", "give other test_dataset"),
        ("output_path='a' is a file", "output_dir is a file"),
        ("give folds=...", "give folds=..."),
    ],
)
def test_arguments_become_keys(message, shown):
    assert as_keys(message, ALL_KEYS, None) == shown


def test_warnings_on_stderr_have_the_same_words(capsys, monkeypatch):
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    terminal = Terminal(wording=str.upper)
    terminal.word_warnings()
    for name, text in (("activation_store.a", "Ours"), ("transformers", "Theirs")):
        logging.lastResort.handle(logging.LogRecord(name, logging.WARNING, "", 1, text, None, None))
    assert capsys.readouterr().err == "OURS\nTheirs\n"
