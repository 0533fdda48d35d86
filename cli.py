"""The command line: parse, wire the two packages together, print, exit codes. No numerics.

Exit codes: 0 done, 1 failure, 2 wrong use or bad input, 130 and 143 interrupted. Heavy imports happen inside the
commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from activation_store import ActivationStore
    from activation_store.interop import PtActivations
    from gpu_probes import About

    Activations = ActivationStore | PtActivations


def _with_underscores(name: str) -> str:
    return name.replace("-", "_")


SETTINGS: dict[str, Any] = {
    # Flags take underscores, as the original scripts had them, or hyphens.
    "token_normalize_func": _with_underscores,
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="probesweep")
def probesweep() -> None:
    """Measure what a language model knows before it answers.

    Run the model over a dataset once (extract), then fit a linear probe at every layer and position (train).
    Flags take _ or -.
    """


@probesweep.command()
@click.option("--model", required=True, help='Hub id, local folder, GGUF file, or "smollm2" (embedded).')
@click.option(
    "--dataset_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Parquet, CSV or JSON Lines file, or folder of datasets' save_to_disk.",
)
@click.option(
    "--output_path",
    required=True,
    type=click.Path(path_type=Path),
    help="Zarr store to write; a name that ends in .pt gets that file as well.",
)
@click.option(
    "--label_column",
    multiple=True,
    default=("success_rate",),
    show_default=True,
    help="Column of numbers to predict; give it again for more.",
)
@click.option(
    "--group_column", multiple=True, help="Column of numbers or texts to keep for train --groups; again for more."
)
@click.option("--question_column", default="question", show_default=True, help="Column of texts or chat messages.")
@click.option("--layers", default="all", show_default=True, help="all, -1, 0,1,2 or 0-8: hidden_states indices.")
@click.option("--eoi_tokens", type=int, help="Store the last N tokens.  [default: the chat template's tail]")
@click.option("--use_chat_template", is_flag=True, help="Questions are bare: put each through the chat template.")
@click.option("--chat_template_kwargs", help="""JSON for the template, such as '{"enable_thinking": false}'.""")
@click.option("--max_length", type=int, help="Most tokens of a prompt; longer is an error.  [default: the model's]")
@click.option("--truncate", is_flag=True, help="Cut the end of the user's text of longer prompts; the tail stays.")
@click.option("--batch_size", type=int, help="Most prompts of a batch.  [default: what fits in free memory]")
@click.option("--max_samples", type=int, help="Use the first N rows only.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--device_map", help="Spread the model over all devices: auto, balanced, ... (accelerate)")
@click.option("--dtype", default="auto", show_default=True, help="auto (the checkpoint's), float32, float16, bfloat16.")
@click.option("--shard_samples", type=int, help="Samples of one shard file.  [default: shards of up to 256 MiB]")
@click.option(
    "--no_prefix_cache",
    "prefix_cache",
    flag_value=False,
    default=True,
    help="Run the tokens that all prompts begin with anew in every batch.",
)
@click.option("--trust_remote_code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--repair", is_flag=True, help="Check the store that is there; extract damaged shards anew.")
@click.option("--dry_run", is_flag=True, help="Say what would be done, with the tokens of ten prompts; do nothing.")
def extract(dry_run: bool, **options: Any) -> None:
    """Store the hidden states of the tokens after each instruction.

    The same command again takes up an interrupted extraction, and does nothing when it is done.

    Example: probesweep extract --model smollm2 --dataset_path data/success_smollm2_train.parquet
    --output_path train.zarr --use_chat_template
    """
    from activation_store import Extraction
    from activation_store.health import describe
    from activation_store.interop import export_pt

    options["chat_template_kwargs"] = _json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    target: Path = options["output_path"]
    if target.suffix == ".pt":
        options["output_path"] = target.with_suffix(".zarr")
    extraction = Extraction(**options)
    if dry_run:
        click.echo(extraction.preview())
        return
    store = extraction.run()
    if target.suffix == ".pt" and not (target.exists() and target.stat().st_mtime_ns >= store.modified_ns):
        export_pt(store, target)
    click.echo("\n".join([repr(store), *describe(store.health)]))


@probesweep.command()
@click.option(
    "--train_activations", required=True, type=click.Path(path_type=Path), help="Store (or .pt) of training rows."
)
@click.option("--test_activations", required=True, type=click.Path(path_type=Path), help="Store (or .pt) of test rows.")
@click.option("--output_dir", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--task_type",
    type=click.Choice(["auto", "regression", "classification"]),
    default="auto",
    show_default=True,
    help="auto: by scikit-learn's type_of_target of the training labels.",
)
@click.option(
    "--probe",
    type=click.Choice(["auto", "ridge", "logistic", "lda", "mass_mean"]),
    default="auto",
    show_default=True,
    help="auto: ridge for numbers, logistic for classes.",
)
@click.option("--join", help="Probe on joined cells: layers (all of a position), mean (of positions), or 20@-4,18@-1.")
@click.option(
    "--label_column", multiple=True, help="Label to predict; give it again for more.  [default: all in the store]"
)
@click.option(
    "--alpha",
    default=1.0,
    show_default=True,
    help="Penalty, as scikit-learn's Ridge; C = 1/alpha. --alphas replaces it.",
)
@click.option(
    "--alphas",
    "--alpha_grid",
    help="Comma-separated grid, or auto (powers of ten that suit the features); each cell takes its best by CV "
    "(needs --k_fold).",
)
@click.option("--fit_intercept", is_flag=True, help="Add an intercept, without a penalty.")
@click.option("--standardize", is_flag=True, help="Features to mean 0, deviation 1, on each fit's training rows alone.")
@click.option("--weight_column", help="Label column of the training store that holds sample weights, not a label.")
@click.option("--k_fold", is_flag=True, help="Cross-validate on the training rows; without it no best probe is chosen.")
@click.option("--n_folds", default=5, show_default=True, help="Number of folds.")
@click.option("--seed", default=42, show_default=True, help="Seed of the folds and of everything drawn at random.")
@click.option("--groups", help="Column of the training store whose samples are held out together (--group_column).")
@click.option(
    "--split_repeats",
    is_flag=True,
    help="Let folds separate training prompts that are the same text; by default they are held out together.",
)
@click.option(
    "--drop_overlap", is_flag=True, help="Score test prompts that are among the training prompts apart, not as test."
)
@click.option(
    "--permutations", default=0, show_default=True, help="Shuffles of the labels for p-values, such as 1000 (--k_fold)."
)
@click.option(
    "--no_nested_cv",
    "nested_cv",
    flag_value=False,
    default=True,
    help="Leave out the honest estimate of the best cell's score.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs), cuda:1, mps.")
@click.option(
    "--budget_gib",
    type=click.FloatRange(0, min_open=True, max=2**20),
    help="Memory for the fits.  [default: half of what is free; 4/5 on a GPU]",
)
def train(
    train_activations: Path, test_activations: Path, output_dir: Path, label_column: tuple[str, ...], **options: Any
) -> None:
    """Fit a linear probe at every layer and position, and say which predicts best.

    Ridge for numbers (Spearman), logistic for classes (ROC-AUC). Several labels get a folder each. The same command
    again does nothing when it is done.

    Example: probesweep train --train_activations train.zarr --test_activations test.zarr --output_dir results
    --k_fold --alphas 1,100,10000
    """
    from activation_store.interop import open_activations
    from gpu_probes.summary import summarize

    if options["alphas"] != "auto":
        options["alphas"] = _numbers(options["alphas"], "--alphas")
    train_store, test_store = open_activations(train_activations), open_activations(test_activations)
    _check_same_origin(train_store, test_store)
    labels = _choose_labels(label_column, (options["weight_column"], options["groups"]), train_store, test_store)
    folders = {label: output_dir / label if len(labels) > 1 else output_dir for label in labels}
    request = {
        "probesweep": version("probesweep"),
        "train": _describe(train_store),
        "test": _describe(test_store),
        "labels": labels,
        "options": {name: value for name, value in options.items() if name not in ("device", "budget_gib")},
    }
    if not all(_is_finished(folder, request) for folder in folders.values()):
        _run_sweep(train_store, test_store, folders, request, options)
    for label, folder in folders.items():
        click.echo(f"{label}: " * (len(folders) > 1) + summarize(folder))


@probesweep.command()
@click.argument("probes", type=click.Path(path_type=Path))
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--label_column", help="Label of the stores to score against.  [default: the one of the training]")
@click.option("--output_path", type=click.Path(path_type=Path), help="JSON file for the scores of every cell.")
def transfer(probes: Path, stores: tuple[Path, ...], label_column: str | None, output_path: Path | None) -> None:
    """Score the probes of a training, or of several in one folder, on other stores.

    A row for each result folder in PROBES, a column for each STORE: the score of the best probe on all its rows.

    Example: probesweep transfer results train.zarr test.zarr other.zarr
    """
    from activation_store.durable import commit_file
    from activation_store.interop import open_activations
    from gpu_probes.transfer import find_trainings, score_all, tabulate

    trainings = find_trainings(probes)
    opened = [open_activations(store) for store in stores]
    for training in trainings:
        for store in opened:
            _check_same_model(training.run, store)
    scores = [
        [score_all(training, store, _label(store, label_column or training.label)) for store in opened]
        for training in trainings
    ]
    if output_path is not None:
        rows = {str(training.folder): row for training, row in zip(trainings, scores, strict=True)}
        commit_file(output_path, [_encode_json({"stores": list(map(str, stores)), "probes": rows})])
    click.echo(tabulate(trainings, list(map(str, stores)), scores))


@probesweep.command()
@click.argument("store", type=click.Path(path_type=Path))
def verify(store: Path) -> None:
    """Check every byte of STORE; list what is damaged or missing and exit 1 if anything is.

    Example: probesweep verify train.zarr
    """
    from tqdm import tqdm

    from activation_store import ActivationStore

    opened = ActivationStore.open(store)
    problems = opened.verify(lambda shards: tqdm(shards, unit="shard", desc="verify", disable=None))
    for problem in problems:
        click.echo(str(problem))
    if problems:
        raise SystemExit(1)
    click.echo(f"{store}: all {len(opened)} samples are whole")


@probesweep.command()
@click.argument("store", type=click.Path(path_type=Path))
def inspect(store: Path) -> None:
    """Say what STORE holds: axes, origin, norms by layer, tokens at every position.

    Example: probesweep inspect train.zarr
    """
    from activation_store import ActivationStore
    from activation_store.inspect import inspect as describe

    click.echo(describe(ActivationStore.open(store)))


@probesweep.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("output_path", type=click.Path(path_type=Path))
def export(store: Path, output_path: Path) -> None:
    """Write a finished STORE as a .pt of the original scripts.

    Example: probesweep export train.zarr train.pt
    """
    from activation_store import ActivationStore
    from activation_store.interop import export_pt

    export_pt(ActivationStore.open(store), output_path)
    click.echo(f"{output_path}: {output_path.stat().st_size / 2**20:.1f} MiB")


@probesweep.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output_path", type=click.Path(path_type=Path))
def import_(source: Path, output_path: Path) -> None:
    """Write a store from SOURCE, a .pt of the original scripts.

    Example: probesweep import train.pt train.zarr
    """
    from activation_store.interop import import_pt

    click.echo(repr(import_pt(source, output_path)))


def _check_same_model(run: dict[str, Any], store: Activations) -> None:
    """Refuse probes of another model's activations."""
    trained, here = run.get("weights"), store.fingerprint.get("weights")
    if None not in (trained, here) and trained != here:
        raise click.UsageError(f"the probes were trained on another model than that of {store.path} (weights differ)")


def _check_same_origin(train_store: Activations, test_store: Activations) -> None:
    """Refuse to test on another model's activations or on another label."""
    for field in ("weights", "tokenizer", "chat_template_kwargs"):
        values = [store.fingerprint.get(field) for store in (train_store, test_store)]
        if None not in values and values[0] != values[1]:
            raise click.UsageError(
                f"{train_store.path} and {test_store.path} differ in {field}: {values[0]} and {values[1]}; "
                "extract both with the same model and template"
            )
    origins = [getattr(store, "attrs", {}).get("provenance", {}) for store in (train_store, test_store)]
    days = [origin.get("template_day") for origin in origins]
    if days[0] != days[1]:
        click.echo(
            f"warning: the chat template can write the day into prompts: {days[0]} in the training rows', {days[1]} in "
            "the test rows'",
            err=True,
        )


def _choose_labels(
    wanted: tuple[str, ...], others: tuple[str | None, str | None], train_store: Activations, test_store: Activations
) -> list[str]:
    """The labels to predict: all of the training store's but weights and groups, unless some are named."""
    weight_column, _ = others
    held = [name for name in train_store.labels if name not in others]
    if not _names_labels(train_store) and (weight_column or len(set(wanted)) > 1):
        raise click.UsageError(f"{train_store.path} has one label without a name; --label_column can be given once")
    needed = ((train_store, [*wanted, *filter(None, [weight_column])]), (test_store, wanted or held))
    for store, names in needed:
        missing = [name for name in names if name not in store.labels]
        if missing and _names_labels(store):
            raise click.UsageError(
                f"{store.path} has no label {missing[0]!r}; it holds {', '.join(store.labels)}. Extract it with "
                f"--label_column {missing[0]}, or choose another with --label_column"
            )
    if not (wanted or held):
        raise click.UsageError(f"{train_store.path} holds no label besides the weights; extract it with another one")
    return list(dict.fromkeys(wanted or held))


def _names_labels(store: Activations) -> bool:
    """Whether the labels have names: the one of a .pt file goes with any name."""
    return store.fingerprint.get("label_columns") is not None


def _label(store: Activations, name: str) -> pd.Series:
    labels = store.labels
    if _names_labels(store) and name not in labels:
        raise click.UsageError(f"{store.path} has no label {name!r}; it holds {', '.join(labels)} (--label_column)")
    return labels.iloc[:, list(labels).index(name) if _names_labels(store) else 0]


def _is_finished(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds all files of the same training."""
    run = _read_json(folder / "run.json")
    return run.get("request") == request and all((folder / name).exists() for name in run.get("files", []))


def _check_writable(output_dir: Path) -> None:
    """Refuse, before the fit, a folder that cannot be made after it."""
    nearest = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise click.UsageError(f"cannot write to {output_dir}: {nearest} is not a folder that you may write to")


def _run_sweep(
    train_store: Activations,
    test_store: Activations,
    folders: dict[str, Path],
    request: dict[str, Any],
    options: dict[str, Any],
) -> None:
    import numpy as np
    from tqdm import tqdm

    from activation_store.durable import commit_file
    from gpu_probes import SweepOptions, compare_overlap, infer, sweep_labels
    from gpu_probes.combine import SomeRows, combine

    for folder in folders.values():
        _check_writable(folder)
    apart = ("join", "groups", "split_repeats", "drop_overlap", "budget_gib", "weight_column")
    join, groups, split_repeats, dropped, budget_gib, weight_column = (options[name] for name in apart)
    shared = _shared_rows(train_store, test_store, dropped=dropped)
    kept = ~shared if dropped else np.ones(test_store.n_samples, dtype=bool)
    given = SweepOptions(
        groups=None if groups is None else _group_column(train_store, groups),
        prompts=None if split_repeats else train_store.questions,
        sample_weight=None if weight_column is None else train_store.labels[weight_column],
        budget_bytes=None if budget_gib is None else int(budget_gib * 2**30),
        progress=partial(tqdm, unit="block of cells", desc="train", disable=None),
        **{name: value for name, value in options.items() if name not in apart},
    )
    train, everything = combine(train_store, join), combine(test_store, join)
    test = SomeRows(everything, kept) if dropped else everything
    labels = {label: (_label(train_store, label), _label(test_store, label)) for label in folders}
    results = sweep_labels(
        train,
        {label: values for label, (values, _) in labels.items()},
        test,
        {label: values[kept] for label, (_, values) in labels.items()},
        **vars(given),
    )
    knows_prompts = None not in (train_store.questions, test_store.questions)
    about = _about(train_store, test_store, kept, groups)
    for label, folder in folders.items():
        (folder / "run.json").unlink(missing_ok=True)
        files = results[label].save(folder)
        inference = infer(results[label], train, test, given, about)
        inference["overlap"] = {"n_shared": None, "reason": "a .pt file does not hold the prompts"}
        if knows_prompts:
            overlap = compare_overlap(results[label], everything, labels[label][1], shared, dropped=dropped)
            inference["overlap"] = overlap
        commit_file(folder / "inference.json", [_encode_json(inference)])
        # run.json comes last: where it stands, the files that it names are whole and belong to its request.
        run = {
            "request": request,
            "command": sys.argv,
            "label": label,
            "weights": train_store.fingerprint.get("weights"),
            "position_tokens": train_store.position_tokens,
            "files": sorted([*files, "inference.json"]),
        }
        commit_file(folder / "run.json", [_encode_json(run)])


def _shared_rows(train_store: Activations, test_store: Activations, *, dropped: bool) -> np.ndarray:
    """Which test prompts are among the training prompts; none where a .pt does not hold them."""
    import numpy as np

    from gpu_probes import shared_prompts

    prompts = train_store.questions, test_store.questions
    if prompts[0] is None or prompts[1] is None:
        if dropped:
            raise click.UsageError("--drop_overlap needs stores: a .pt file does not hold the prompts")
        return np.zeros(test_store.n_samples, dtype=bool)
    shared = shared_prompts(prompts[0], prompts[1])
    if dropped and shared.all():
        raise click.UsageError(
            f"every prompt of {test_store.path} is among those of {train_store.path}: nothing is left to test on; give "
            "other --test_activations"
        )
    return shared


def _about(train_store: Activations, test_store: Activations, kept: np.ndarray, groups: str | None) -> About:
    """What the stores know of their rows besides features and labels."""
    from gpu_probes import About

    lengths, test_lengths = train_store.n_tokens, test_store.n_tokens
    numbers = {} if lengths is None or test_lengths is None else {"prompt_length": (lengths, test_lengths[kept])}
    prompts = test_store.questions
    return About(
        train_prompts=train_store.questions,
        test_prompts=None if prompts is None else [text for text, keep in zip(prompts, kept, strict=True) if keep],
        test_groups=_group_column(test_store, groups)[kept] if groups and groups in _columns(test_store) else None,
        numbers=numbers,
    )


def _columns(store: Activations) -> list[str]:
    """Columns that can say which samples belong together."""
    return [*store.labels, *(store.fingerprint.get("group_columns") or ())]


def _group_column(store: Activations, name: str) -> np.ndarray:
    from activation_store import ActivationStore

    if name in store.labels:
        return store.labels[name].to_numpy()
    if name not in _columns(store) or not isinstance(store, ActivationStore):
        raise click.UsageError(
            f"{store.path} has no column {name!r} to group by; it holds {', '.join(_columns(store))}. Extract it with "
            f"--group_column {name}"
        )
    return store.coordinate(name)


def _describe(store: Activations) -> dict[str, Any]:
    return {"path": str(store.path), "n_samples": store.n_samples, "content": store.journal_hash}


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


def _numbers(text: str | None, flag: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(item) for item in text.split(",")]
    except ValueError as error:
        raise click.UsageError(
            f"{flag} {text!r}: write numbers with commas between, such as 1,10,100, or auto"
        ) from error


def _encode_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    """Entry point: run a command and turn what it raises into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    _set_up_libraries()
    sys.exit(_exit_code(lambda: probesweep.main(prog_name="probesweep", standalone_mode=False)))


def _set_up_libraries() -> None:
    """Before they are imported: only our own messages, no progress bars without a terminal, no busy waiting."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    # OpenMP threads that spin while they wait slow torch down several times over when another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        command()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "probesweep"
        return _fail(f"{error.format_message()} (see {where} --help)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; run the same command again to go on", 130)
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        # Both packages' input errors are ValueErrors of their own trees; telling them apart needs their imports.
        from activation_store.errors import InputError, StoreError
        from gpu_probes.errors import ProbeError

        if isinstance(error, (StoreError, ProbeError)):
            return _fail(str(error), 2 if isinstance(error, (InputError, ProbeError)) else 1)
        raise
    return 0


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
