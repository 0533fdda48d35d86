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
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from activation_store import ActivationStore
    from activation_store.interop import PtActivations

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
@click.option("--label_column", default="success_rate", show_default=True, help="Column of numbers to predict.")
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
@click.option("--alpha", default=1.0, show_default=True, help="Penalty, as scikit-learn's Ridge; C = 1/alpha.")
@click.option("--alphas", "--alpha_grid", help="Comma-separated grid; each cell takes its best by CV (needs --k_fold).")
@click.option("--k_fold", is_flag=True, help="Cross-validate on the training rows; without it no best probe is chosen.")
@click.option("--n_folds", default=5, show_default=True, help="Number of folds.")
@click.option("--seed", default=42, show_default=True, help="Seed of the folds.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
def train(train_activations: Path, test_activations: Path, output_dir: Path, **options: Any) -> None:
    """Fit a linear probe at every layer and position, and say which predicts best.

    Ridge for numbers (Spearman), logistic for classes (ROC-AUC). The same command again does nothing when it is done.

    Example: probesweep train --train_activations train.zarr --test_activations test.zarr --output_dir results
    --k_fold --alphas 1,100,10000
    """
    from activation_store.interop import open_activations

    options["alphas"] = _numbers(options["alphas"], "--alphas")
    train_store, test_store = open_activations(train_activations), open_activations(test_activations)
    _check_same_origin(train_store, test_store)
    request = {
        "probesweep": version("probesweep"),
        "train": _describe(train_store),
        "test": _describe(test_store),
        "options": {name: value for name, value in options.items() if name != "device"},
    }
    finished = _read_json(output_dir / "run.json")
    missing = [name for name in finished.get("files", []) if not (output_dir / name).exists()]
    if finished.get("request") != request or missing:
        _run_sweep(train_store, test_store, output_dir, request, options)
    click.echo(_summary(output_dir))


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


def _check_same_origin(train_store: Activations, test_store: Activations) -> None:
    """Refuse to test on another model's activations or on another label."""
    for field in ("weights", "tokenizer", "chat_template_kwargs", "label_columns"):
        values = [store.fingerprint.get(field) for store in (train_store, test_store)]
        if None not in values and values[0] != values[1]:
            raise click.UsageError(
                f"{train_store.path} and {test_store.path} differ in {field}: {values[0]} and {values[1]}; "
                "extract both with the same model, template and label column"
            )


def _check_writable(output_dir: Path) -> None:
    """Refuse, before the fit, a folder that cannot be made after it."""
    nearest = next(folder for folder in (output_dir.absolute(), *output_dir.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise click.UsageError(f"cannot write to {output_dir}: {nearest} is not a folder that you may write to")


def _run_sweep(
    train_store: Activations,
    test_store: Activations,
    output_dir: Path,
    request: dict[str, Any],
    options: dict[str, Any],
) -> None:
    from tqdm import tqdm

    from activation_store.durable import commit_file
    from gpu_probes import score_number, sweep

    _check_writable(output_dir)
    (output_dir / "run.json").unlink(missing_ok=True)
    train_labels, test_labels = (store.labels.iloc[:, 0] for store in (train_store, test_store))
    result = sweep(
        train_store,
        train_labels,
        test_store,
        test_labels,
        progress=lambda cells: tqdm(cells, unit="cell", desc="train", disable=None),
        **options,
    )
    lengths, test_lengths = train_store.n_tokens, test_store.n_tokens
    baseline = None
    if lengths is not None and test_lengths is not None:
        baseline = score_number(result, lengths, test_lengths)
    result.save(output_dir)
    inference = {"baselines": {"prompt_length": baseline}}
    commit_file(output_dir / "inference.json", [_encode_json(inference)])
    # run.json comes last: where it stands, the files that it names are whole and belong to its request.
    run = {
        "request": request,
        "command": sys.argv,
        "position_tokens": train_store.position_tokens,
        "files": sorted(file.name for file in output_dir.glob("[!.]*")),
    }
    commit_file(output_dir / "run.json", [_encode_json(run)])


def _summary(output_dir: Path) -> str:
    """What a finished training found, read from its files."""
    performance = _read_json(output_dir / "performance.json")
    run = _read_json(output_dir / "run.json")
    lines = [
        f"{performance['n_layers']} layers x {performance['n_positions']} positions, {performance['task_type']}",
        "layer: index into hidden_states (0 = embeddings, last = after the final norm); position: -1 = last token",
    ]
    reasons: dict[str, int] = {}
    for reason in performance["undefined"].values():
        reasons[reason] = reasons.get(reason, 0) + 1
    lines += [f"{count} cells without a score: {reason}" for reason, count in reasons.items()]
    if performance["k_fold"]:
        lines += ["", *_best_lines(output_dir, performance, run)]
    else:
        lines += ["", "No best probe is chosen: the only scores to choose by are the test scores. Add --k_fold."]
    lines += ["", f"results in {output_dir}: {', '.join([*run['files'], 'run.json'])}"]
    return "\n".join(lines)


def _best_lines(output_dir: Path, performance: dict[str, Any], run: dict[str, Any]) -> list[str]:
    if not (output_dir / "best_probe_predictions.json").exists():
        return ["No best probe: no cell has a CV score."]
    best = _read_json(output_dir / "best_probe_predictions.json")
    baseline = _read_json(output_dir / "inference.json")["baselines"]["prompt_length"]
    scores, layers, metric = performance["layer_performance"], performance["layer_indices"], performance["metric"]
    tokens = [repr(token) if token else "" for token in run["position_tokens"]]
    lines = [f"{'':34}{'CV':>8}{'test':>8}  ({metric})"]
    for index, position in enumerate(performance["positions"]):
        cv = scores["cv"][index]
        defined = [layer for layer, score in enumerate(cv) if score is not None]
        if defined:
            layer = max(defined, key=lambda layer: cv[layer])
            label = f"position {position} {tokens[index]}: layer {layers[layer]}"
            lines.append(_row(label, cv[layer], scores["test"][index][layer]))
    n_scored = sum(score is not None for row in scores["cv"] for score in row)
    return [
        *lines,
        _row("prompt length alone", baseline["cv_score"], baseline["test_score"])
        if baseline
        else "prompt length alone: not known, a .pt file does not hold it",
        "",
        f"best probe by CV: layer {best['best_layer_number']}, position {best['best_position']} "
        f"{tokens[best['best_position_idx']]}, alpha {best['selected_alpha']:g}",
        _row("best probe", best["cv_score"], best["test_score"]),
        f"Its CV score is the highest of {n_scored} cells and the alphas tried, so optimistic; "
        "the test score chose nothing.",
    ]


def _row(label: str, *scores: float | None) -> str:
    return f"{label:34}" + "".join(f"{'-' if score is None else format(score, '.3f'):>8}" for score in scores)


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
        raise click.UsageError(f"{flag} {text!r}: write numbers with commas between, such as 1,10,100") from error


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
