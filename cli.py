"""The command line: parse, connect the two packages, print, exit codes. No numerics.

Exit codes: 0 done, 1 failure, 2 wrong usage, bad input or a resource limit (ulimit), 130 and 143 interrupted, 141 the
output pipe was closed. Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click
from click.shell_completion import get_completion_class

from activation_store.files.storage import Location, is_address, locate
from probesweep.terminal.command import Group, Terminal, say, show_versions
from probesweep.terminal.limits import limit_reached
from probesweep.terminal.streams import close_streams, nobody_reads, open_streams
from probesweep_errors import ProbesweepError

if TYPE_CHECKING:
    import numpy as np

    from probesweep.tracking.track import Kind


def _with_underscores(name: str) -> str:
    return name.replace("-", "_")


SETTINGS: dict[str, Any] = {
    # Flags take underscores, as in the original scripts, or hyphens.
    "token_normalize_func": _with_underscores,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
# What a shell reports for a command killed by SIGPIPE.
_BROKEN_PIPE = 128 + signal.SIGPIPE


class _TextPath(click.Path):
    """A path that is valid text, as safetensors, Arrow and torch need. `-` may be standard input, `./-` is a file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert the argument to a path."""
        if is_address(value):
            self.fail(f"{value} is in an object store, where only stores can be; give a path on a disk", param, ctx)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(value)!r} contains bytes that are not valid text; rename it", param, ctx)
        path = Path(value)
        return path.absolute() if str(path) == "-" and str(value) != "-" else path


# Older versions of click take no type here.
class _Location(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A path, or the address of a store in an object store, which stays text."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Convert the argument to a path unless it is an address."""
        return locate(value) if is_address(value) else _PATH.convert(value, param, ctx)


_PATH = _TextPath()
_LOCATION = _Location()
_TRACKERS = click.Choice(["wandb", "mlflow", "tensorboard"])


@click.group(cls=Group, context_settings=SETTINGS)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_versions,
    help="Show versions and device, and exit.",
)
def probesweep() -> None:
    """Measure what a language model knows before it answers.

    Run the model over a dataset once (extract), then fit a linear probe at every layer and position (train), or do
    both from one file (run). Flags may be written with _ or -.

    Example: probesweep run --init experiment.toml, then probesweep run experiment.toml
    """


@probesweep.command()
@click.option("--model", required=True, help='Hub id, local folder, GGUF file, or "smollm2" (bundled).')
@click.option(
    "--dataset_path",
    required=True,
    type=_PATH,
    help="Parquet, CSV or JSON Lines file, or a save_to_disk folder of datasets.",
)
@click.option(
    "--output_path",
    required=True,
    type=_LOCATION,
    help="Zarr store to write, a folder or s3://bucket/x.zarr; x.pt writes x.zarr and x.pt.",
)
@click.option(
    "--label_column",
    multiple=True,
    default=("success_rate",),
    show_default=True,
    help="Column of numbers to predict; repeat the flag for several.",
)
@click.option(
    "--group_column", multiple=True, help="Column of numbers or strings to keep for train --groups; repeat for several."
)
@click.option("--question_column", default="question", show_default=True, help="Column of strings or chat messages.")
@click.option("--layers", default="all", show_default=True, help="all, -1, 0,1,2 or 0-8: hidden_states indices.")
@click.option("--eoi_tokens", type=int, help="Store the last N tokens.  [default: the chat template's tail]")
@click.option("--use_chat_template", is_flag=True, help="Questions are bare text: render each with the chat template.")
@click.option("--chat_template_kwargs", help="""JSON for the template, such as '{"enable_thinking": false}'.""")
@click.option(
    "--max_length", type=int, help="Most tokens of a prompt; longer ones are an error.  [default: the model's limit]"
)
@click.option(
    "--truncate", is_flag=True, help="Cut the end of the user's text of longer prompts; the template's tail is kept."
)
@click.option("--batch_size", type=int, help="Most prompts in a batch.  [default: what fits into free memory]")
@click.option("--max_samples", type=int, help="Use only the first N rows.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--device_map", help="Spread the model over all devices: auto, balanced, ... (accelerate)")
@click.option("--dtype", default="auto", show_default=True, help="auto (the checkpoint's), float32, float16, bfloat16.")
@click.option("--shard_samples", type=int, help="Samples per shard file.  [default: shards of up to 256 MiB]")
@click.option(
    "--no_prefix_cache",
    "prefix_cache",
    flag_value=False,
    default=True,
    help="Recompute the tokens shared by all prompts in every batch.",
)
@click.option("--trust_remote_code", is_flag=True, help="Run code from the model's repository.")
@click.option("--repair", is_flag=True, help="Check every byte of an existing store; extract damaged shards again.")
@click.option("--workers", type=int, help="Processes that share the shards, each with the model (needs the extra ray).")
@click.option("--ray", help="Where they run: local, or a Ray cluster: auto, host:port, ray://host:port.")
@click.option("--dry_run", is_flag=True, help="Print sizes and the stored tokens of ten prompts; run nothing.")
@click.pass_obj
def extract(terminal: Terminal, dry_run: bool, **options: Any) -> None:
    """Store the hidden states of the tokens after each instruction.

    To resume an interrupted extraction, run the same command again. A finished one is not repeated.

    Example: probesweep extract --model smollm2 --dataset_path data/success_smollm2_train.parquet
    --output_path train.zarr --use_chat_template
    """
    terminal.wait(f"loading {options['model']} ...")
    from activation_store import Extraction
    from activation_store.extraction.arguments import check_disk
    from activation_store.pt.convert import export_pt, is_exported
    from activation_store.store.describe import describe_store
    from activation_store.store.health import describe
    from probesweep.outputs import check_file

    options["chat_template_kwargs"] = _json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    output_path: Location = options["output_path"]
    target = output_path if isinstance(output_path, Path) and output_path.suffix == ".pt" else None
    if target:
        options["output_path"] = target.with_suffix(".zarr")
    extraction = Extraction(**options)
    if target:
        check_file(target, "output_path", [options["dataset_path"]])
    if dry_run:
        preview = extraction.preview()
        terminal.answer(lambda: preview, lambda: {"preview": preview})
        return
    if target and not target.is_file():
        check_disk(target, extraction.plan().nbytes + extraction.missing_nbytes())
    store = extraction.run()
    if target and not is_exported(store, target, progress=_shard_bar("compare")):
        export_pt(store, target, progress=_shard_bar("export"))
    terminal.summarize(lambda: "\n".join([repr(store), *describe(store.health)]), lambda: describe_store(store))


@probesweep.command()
@click.option("--train_activations", required=True, type=_LOCATION, help="Store (or .pt) of the training rows.")
@click.option("--test_activations", required=True, type=_LOCATION, help="Store (or .pt) of the test rows.")
@click.option("--output_dir", required=True, type=_PATH, help="Folder for the results.")
@click.option(
    "--task_type",
    type=click.Choice(["auto", "regression", "classification"]),
    default="auto",
    show_default=True,
    help="auto: scikit-learn's type_of_target of the training labels.",
)
@click.option(
    "--probe",
    type=click.Choice(["auto", "ridge", "logistic", "lda", "mass_mean"]),
    default="auto",
    show_default=True,
    help="auto: ridge for regression, logistic for classes.",
)
@click.option(
    "--join", help="Probe on joined cells: layers (all of a position), mean (over positions), or 20@-4,18@-1."
)
@click.option(
    "--label_column", multiple=True, help="Label to predict; repeat for several.  [default: all in the store]"
)
@click.option(
    "--alpha",
    default=1.0,
    show_default=True,
    help="Penalty, as in scikit-learn's Ridge; C = 1/alpha. For a grid give --alphas instead.",
)
@click.option(
    "--alphas",
    "--alpha_grid",
    help="Comma-separated grid, or auto (powers of ten, scaled to the features); each cell takes its best by CV "
    "(needs --k_fold).",
)
@click.option("--fit_intercept", is_flag=True, help="Add an unpenalized intercept.")
@click.option(
    "--standardize", is_flag=True, help="Scale features to mean 0, deviation 1, fitted on each fold's training rows."
)
@click.option("--weight_column", help="Label column of the training store that holds sample weights.")
@click.option("--k_fold", is_flag=True, help="Cross-validate on the training rows; without it no best probe is chosen.")
@click.option("--n_folds", default=5, show_default=True, help="Number of folds.")
@click.option("--seed", default=42, show_default=True, help="Seed of the folds and of everything else drawn at random.")
@click.option("--groups", help="Column of the training store whose samples are held out together (--group_column).")
@click.option(
    "--split_repeats",
    is_flag=True,
    help="Let folds separate repeated training prompts; by default they are held out together.",
)
@click.option(
    "--drop_overlap", is_flag=True, help="Score test prompts that also occur in training separately, not as test rows."
)
@click.option(
    "--permutations",
    default=0,
    show_default=True,
    help="Permutations of the labels for p-values, such as 1000 (--k_fold).",
)
@click.option(
    "--no_nested_cv",
    "nested_cv",
    flag_value=False,
    default=True,
    help="Skip nested cross-validation.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs), cuda:1, mps.")
@click.option("--workers", type=int, help="Processes that share the cells (needs the extra ray).")
@click.option("--ray", help="Where they run: local, or a Ray cluster: auto, host:port, ray://host:port.")
@click.option(
    "--budget_gib",
    type=float,
    help="Memory for fits, statistics and results, of each worker.  [default: half of what is free; 4/5 on a GPU]",
)
@click.option("--track", type=_TRACKERS, help="Send settings, scores and figures to a tracker.")
@click.pass_obj
def train(terminal: Terminal, track: Kind | None, **options: Any) -> None:
    """Fit a linear probe at every layer and position.

    Ridge for regression (Spearman), logistic for classes (ROC-AUC). Several labels get a folder each. A finished
    training is not repeated.

    Example: probesweep train --train_activations train.zarr --test_activations test.zarr --output_dir results
    --k_fold --alphas 1,100,10000
    """
    from probesweep import Training

    training = Training(**options)
    if track is None:
        _show_trainings(terminal, training.run())
        return
    from probesweep.tracking.track import check_installed
    from probesweep.tracking.track import track as send

    check_installed(track)
    folders = training.run()
    for folder in folders.values():
        sent = send(track, folder)
        if sent:
            terminal.note(f"{track}: {sent}")
    _show_trainings(terminal, folders)


@probesweep.command()
@click.argument("experiment", type=_PATH)
@click.option("--init", is_flag=True, help="Write a commented EXPERIMENT to start from.")
@click.pass_obj
def run(terminal: Terminal, experiment: Path, init: bool) -> None:
    """Run a complete experiment from one file: extract, train, report.

    EXPERIMENT is a TOML file. Finished stages are skipped. After an edit, only stages affected by it are rerun.

    Example: probesweep run --init experiment.toml, then probesweep run experiment.toml
    """
    if init:
        from probesweep.experiment.template import write_template

        write_template(experiment)
        terminal.summarize(
            lambda: f"wrote {experiment}; edit it, then run: probesweep run {experiment}",
            lambda: {"experiment": str(experiment)},
        )
        return
    from probesweep.experiment.experiment import Experiment
    from probesweep.experiment.file import ALL_KEYS
    from probesweep.terminal.flags import as_keys

    terminal.wording = partial(as_keys, keys=ALL_KEYS, given=str(experiment))
    loaded = Experiment.load(experiment)
    terminal.wording = partial(as_keys, keys=ALL_KEYS, given=[str(experiment), loaded.settings])
    _show_trainings(terminal, loaded.run(terminal.note))


@probesweep.command()
@click.argument("results", type=_PATH)
@click.option("--figures", is_flag=True, help="Also write every figure as PNG and SVG into the folder figures.")
@click.pass_obj
def report(terminal: Terminal, results: Path, figures: bool) -> None:
    """Write the HTML report of a result folder.

    Writes report.html into RESULTS, or into each result folder inside it. The page needs no network.

    Example: probesweep report results --figures
    """
    from tqdm import tqdm

    from gpu_probes.results.transfer import find_trainings
    from probesweep.reporting import report_on

    pages = [
        report_on(training.folder, figures=training.folder / "figures" if figures else None)
        for training in tqdm(find_trainings(results), unit="page", desc="report")
    ]
    terminal.summarize(lambda: "\n".join(map(str, pages)), lambda: {"reports": list(map(str, pages))})


@probesweep.command()
@click.option("--probe", required=True, type=_PATH, help="Result folder of train, with a best probe.")
@click.option(
    "--dataset_path",
    "--dataset",
    type=_PATH,
    help="Parquet, CSV or JSON Lines file of new prompts; -: JSON Lines from standard input.",
)
@click.option(
    "--output_path", "--output", type=_PATH, help="Where to write the rows with scores: .parquet, .csv or .jsonl."
)
@click.option(
    "--text",
    multiple=True,
    help="A prompt to score in the terminal; repeat for several; -: one per line from standard input.",
)
@click.option("--question_column", help="Column of the prompts.  [default: the training's]")
@click.option("--max_samples", type=int, help="Use only the first N rows.")
@click.option(
    "--max_length",
    type=click.IntRange(1),
    help="Most tokens of a prompt.  [default: what training prompts were cut to, or else the model's limit]",
)
@click.option(
    "--truncate", is_flag=True, help="Cut the end of the user's text of longer prompts; the template's tail is kept."
)
@click.option(
    "--on_error",
    type=click.Choice(["stop", "null"]),
    default="stop",
    show_default=True,
    help="null: a row whose prompt cannot be used gets null scores and a probe_error.",
)
@click.option("--model", help="New location of the same model.  [default: the training's]")
@click.option(
    "--batch_size", type=click.IntRange(1), help="Most prompts in a batch.  [default: what fits into free memory]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--trust_remote_code", is_flag=True, help="Run code from the model's repository.")
@click.pass_obj
def predict(
    terminal: Terminal,
    probe: Path,
    dataset_path: Path | None,
    output_path: Path | None,
    text: tuple[str, ...],
    question_column: str | None,
    max_samples: int | None,
    on_error: Literal["stop", "null"],
    **options: Any,
) -> None:
    """Score new prompts with the best probe of a training. The model runs only up to the probe's layer.

    Example: probesweep predict --probe results --dataset_path new.parquet --output_path scores.parquet

    Example: probesweep predict --probe results --text "What is 7 * 6?"
    """
    if bool(text) == bool(dataset_path) or bool(dataset_path) != bool(output_path):
        raise click.UsageError("give --dataset_path and --output_path, or --text")
    if text and (question_column is not None or max_samples is not None):
        raise click.UsageError("--question_column and --max_samples are for --dataset_path; leave them out with --text")
    terminal.wait("loading the probe and its model ...")
    from probesweep.terminal.standard_input import dataset_file, texts_of
    from probesweep.use.prediction import Probe
    from probesweep.use.scored_datasets import score_dataset, score_texts

    opened = Probe.load(probe, **options)
    if dataset_path is None or output_path is None:
        scored = score_texts(opened, texts_of(text), on_error=on_error)
        terminal.answer(lambda: str(scored), scored.records)
        return
    with dataset_file(dataset_path) as rows:
        scored = score_dataset(
            opened,
            rows,
            output_path,
            question_column=question_column,
            max_samples=max_samples,
            on_error=on_error,
            progress=_prompt_bar,
        )
    missing = terminal.wording(_without_score(scored.unusable))
    terminal.summarize(
        lambda: f"{output_path}: {scored.n_rows} rows with {', '.join(scored.columns)}{missing}",
        lambda: {
            "output_path": str(output_path),
            "n_rows": scored.n_rows,
            "columns": scored.columns,
            "unusable": {str(row): reason for row, reason in scored.unusable.items()},
        },
    )


def _without_score(unusable: Mapping[int, str]) -> str:
    """How many rows have no score, and why the first one has none."""
    if not unusable:
        return ""
    row, reason = next(iter(unusable.items()))
    return f"\n{len(unusable)} of them have no score (see probe_error); row {row}: {reason}"


@probesweep.command()
@click.argument("probes", type=_PATH)
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=_LOCATION)
@click.option("--label_column", help="Label of the stores to score against.  [default: the training's]")
@click.option("--output_path", type=_PATH, help="JSON file for the scores of every cell.")
@click.pass_obj
def transfer(
    terminal: Terminal, probes: Path, stores: tuple[Location, ...], label_column: str | None, output_path: Path | None
) -> None:
    """Score trained probes on other stores.

    Prints a row per result folder in PROBES and a column per STORE: the score of the best probe on all rows.

    Example: probesweep transfer results train.zarr test.zarr other.zarr
    """
    from tqdm import tqdm

    from activation_store.files.durable import write_output
    from activation_store.opening import open_activations
    from gpu_probes.results.transfer import find_trainings, score_all, tabulate
    from probesweep.outputs import check_file
    from probesweep.stores import check_same_model, label

    if output_path is not None:
        check_file(output_path, "output_path", [probes, *stores])
    trainings, opened = find_trainings(probes), [open_activations(store) for store in stores]
    for training in trainings:
        for store in opened:
            check_same_model(training.run, store)
    pairs = [(training, store) for training in trainings for store in opened]
    each = [
        score_all(training, store, label(store, label_column or training.label))
        for training, store in tqdm(pairs, unit="store", desc="transfer")
    ]
    scores = [each[start : start + len(stores)] for start in range(0, len(each), len(stores))]
    rows = {str(training.folder): row for training, row in zip(trainings, scores, strict=True)}
    document = {"stores": list(map(str, stores)), "probes": rows}
    if output_path is not None:
        output_path.parent.mkdir(parents=True, exist_ok=True)
        write_output(output_path, [json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"])
    terminal.answer(lambda: tabulate(trainings, list(map(str, stores)), scores), lambda: document)


@probesweep.command()
@click.argument("store", type=_LOCATION)
@click.pass_obj
def verify(terminal: Terminal, store: Location) -> None:
    """Check every byte of a STORE.

    Lists what is damaged or missing, and exits with 1 if there is anything to list.

    Example: probesweep verify train.zarr
    """
    from activation_store import ActivationStore

    opened = ActivationStore.open(store)
    problems = [terminal.wording(str(problem)) for problem in opened.verify(_shard_bar("verify"))]
    terminal.answer(
        lambda: "\n".join(problems) or f"{store}: all {len(opened)} samples are complete and undamaged",
        lambda: {"store": str(store), "n_samples": len(opened), "problems": problems},
    )
    if problems:
        raise SystemExit(1)


@probesweep.command()
@click.argument("store", type=_LOCATION)
@click.pass_obj
def inspect(terminal: Terminal, store: Location) -> None:
    """Describe a STORE.

    Shows its axes, origin, committed rows, norms by layer, and the tokens at every position of a few samples.

    Example: probesweep inspect train.zarr
    """
    from activation_store import ActivationStore
    from activation_store.store.describe import describe_store
    from activation_store.store.describe import inspect as describe

    opened = ActivationStore.open(store)
    terminal.answer(lambda: describe(opened), lambda: describe_store(opened))


@probesweep.command()
@click.argument("store", type=_LOCATION)
@click.argument("output_path", type=_PATH)
@click.option("--label_column", help="The label to write.  [default: the first]")
@click.pass_obj
def export(terminal: Terminal, store: Location, output_path: Path, label_column: str | None) -> None:
    """Write a finished STORE as a .pt file of the original scripts.

    Example: probesweep export train.zarr train.pt
    """
    from activation_store import ActivationStore
    from activation_store.pt.convert import export_pt
    from probesweep.outputs import check_file
    from probesweep.stores import label

    check_file(output_path, "output_path", [store])
    opened = ActivationStore.open(store)
    if label_column is not None:
        label(opened, label_column)
    export_pt(opened, output_path, label_column=label_column, progress=_shard_bar("export"))
    n_bytes = output_path.stat().st_size
    terminal.summarize(
        lambda: f"{output_path}: {n_bytes / 2**20:.1f} MiB",
        lambda: {"output_path": str(output_path), "n_bytes": n_bytes},
    )


@probesweep.command("import")
@click.argument("source", type=_PATH)
@click.argument("output_path", type=_LOCATION)
@click.pass_obj
def import_(terminal: Terminal, source: Path, output_path: Location) -> None:
    """Write a store from SOURCE, a .pt file of the original scripts.

    Example: probesweep import train.pt train.zarr
    """
    from activation_store.pt.convert import import_pt
    from activation_store.store.describe import describe_store

    store = import_pt(source, output_path, progress=_shard_bar("import"))
    terminal.summarize(lambda: repr(store), lambda: describe_store(store))


@probesweep.command()
@click.argument("store", type=_LOCATION)
@click.argument("target", type=_LOCATION)
@click.pass_obj
def copy(terminal: Terminal, store: Location, target: Location) -> None:
    """Copy a STORE to TARGET, from or to a disk or an object store.

    Every byte is checked on the way, and again where it was written. The same command again goes on with a copy that
    broke off, or adds what was committed to an unfinished STORE since.

    Example: probesweep copy train.zarr s3://bucket/train.zarr
    """
    from activation_store import ActivationStore
    from activation_store.store.describe import describe_store

    copied = ActivationStore.open(store).copy_to(target, progress=_shard_bar("copy"))
    terminal.summarize(lambda: repr(copied), lambda: describe_store(copied))


@probesweep.command()
@click.argument("path", type=_LOCATION)
@click.argument("repository")
@click.option("--public", is_flag=True, help="Make a new repository public, and allow one that is already public.")
@click.option("--revision", help="Branch to commit to.  [default: the main branch]")
@click.option("--message", help="Commit message.  [default: written for you]")
@click.pass_obj
def push(terminal: Terminal, path: Location, repository: str, **options: Any) -> None:
    """Upload a store or results to the Hugging Face hub.

    PATH is a finished store, or a folder of results. A new REPOSITORY is private unless --public is given.

    Example: probesweep push results name/success-probes
    """
    from probesweep.sharing.push_pull import push as send

    sent = send(path, repository, announce=terminal.note, progress=_shard_bar("verify"), **options)
    terminal.summarize(lambda: sent, lambda: {"pushed": sent})


@probesweep.command()
@click.argument("repository")
@click.argument("path", type=_PATH)
@click.option("--revision", help="Branch, tag or commit to download.  [default: the main branch]")
@click.pass_obj
def pull(terminal: Terminal, repository: str, path: Path, revision: str | None) -> None:
    """Download a store or results from the Hugging Face hub.

    Everything in REPOSITORY that push sent goes into a new folder, PATH, and is checked.

    Example: probesweep pull name/success-probes results
    """
    from probesweep.sharing.push_pull import pull as take

    taken = take(repository, path, revision=revision, progress=_shard_bar("verify"))
    terminal.summarize(lambda: taken, lambda: {"pulled": taken})


@probesweep.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print code for shell completion.

    Makes SHELL complete commands and flags.

    Example: probesweep completion bash >> ~/.bashrc
    """
    found = get_completion_class(shell)
    assert found is not None
    say(found(probesweep, {}, "probesweep", "_PROBESWEEP_COMPLETE").source())


def _show_trainings(terminal: Terminal, folders: dict[str, Path]) -> None:
    from gpu_probes.report.summary import describe, summarize

    terminal.summarize(
        lambda: "\n".join(
            f"{label}: " * (len(folders) > 1) + terminal.wording(summarize(folder)) for label, folder in folders.items()
        ),
        lambda: {label: describe(folder) for label, folder in folders.items()},
    )


def _shard_bar(what: str) -> Callable[[Any], Any]:
    from tqdm import tqdm

    return lambda shards: tqdm(shards, unit="shard", desc=what)


def _prompt_bar(batches: Any, n_prompts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from tqdm import tqdm

    with tqdm(total=n_prompts, unit="prompt", desc="predict") as bar:
        for rows, states in batches:
            yield rows, states
            bar.update(len(rows))


def _json_object(text: str | None, flag: str) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{flag} is not JSON ({error}); write it as '{{\"key\": value}}'") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{flag} must be a JSON object such as '{{\"enable_thinking\": false}}'")
    return value


def main() -> None:
    """Entry point: run a command and turn exceptions into one line and an exit code."""
    open_streams()
    signal.signal(signal.SIGTERM, _terminate)
    _set_up_libraries()
    terminal = Terminal()
    terminal.word_warnings()
    try:
        code = _exit_code(
            terminal, lambda: probesweep.main(prog_name="probesweep", standalone_mode=False, obj=terminal)
        )
    finally:
        close_streams()
    sys.exit(code)


def _set_up_libraries() -> None:
    """Before libraries are imported: no progress bars without a terminal, no busy waiting."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # OpenMP threads that spin while waiting slow torch down several times when another process needs a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _exit_code(terminal: Terminal, command: Callable[[], Any]) -> int:
    try:
        command()
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "probesweep"
        return _fail(f"{error.format_message()} (see {where} --help)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; run the same command again to resume", 130)
    except SystemExit as ended:
        # click exits with 1 for a closed pipe, which would mean that a store is damaged.
        if ended.code == 1 and nobody_reads():
            return _BROKEN_PIPE
        raise
    except Exception as error:
        if terminal.debug:
            raise
        return _explain(terminal, error)
    return 0


def _leave_at_once(message: str) -> NoReturn:
    """Exit without cleanup: libraries that ran out of memory can hang in it."""
    _fail(message, 2)
    close_streams()
    os._exit(2)


def _explain(terminal: Terminal, error: Exception) -> int:
    """One line for expected errors; anything else is a bug."""
    limit = limit_reached(error)
    if limit is not None:
        _leave_at_once(limit)
    if isinstance(error, OSError):
        # No file can have that name: wrong usage, whatever the disk.
        code = 2 if error.errno == errno.ENAMETOOLONG else 1
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", code)
    if isinstance(error, ProbesweepError):
        # What can be mended by other input is a ValueError too.
        return _fail(terminal.wording(str(error)), 2 if isinstance(error, ValueError) else 1)
    kind = type(error).__name__
    return _fail(f"{kind}: {error}; this is a bug in probesweep: please report it with the output of --debug", 1)


def _fail(message: str, code: int) -> int:
    # If nobody reads stderr, the exit code is all there is.
    with suppress(OSError):
        click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
