"""Commands that read result folders."""

from __future__ import annotations

import json
from pathlib import Path

import click

from activation_store.files.storage import Location
from probesweep.commands.arguments import LOCATION, PATH
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.argument("results", type=PATH)
@click.option("--figures", is_flag=True, help="Also write every figure as PNG, SVG and PDF into the folder figures.")
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
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True, type=PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "latex", "markdown"]),
    default="markdown",
    show_default=True,
    help="csv: all columns and digits; latex: a tabular with booktabs.",
)
@click.pass_obj
def table(terminal: Terminal, results: tuple[Path, ...], form: str) -> None:
    """Print a table of trainings for a paper.

    A row for each result folder, or each one inside a folder: the best probe's place, scores with intervals, p, and
    baselines.

    Example: probesweep table results --format latex
    """
    from gpu_probes.report.paper import FORMATS, paper_rows
    from gpu_probes.results.transfer import find_trainings

    found = {one.folder.resolve(): one.results for folder in results for one in find_trainings(folder)}
    rows = paper_rows(list(found.values()))
    terminal.answer(lambda: FORMATS[form](rows), lambda: rows)


@probesweep.command()
@click.argument("probes", type=PATH)
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=LOCATION)
@click.option("--label_column", help="Label of the stores to score against.  [default: the training's]")
@click.option("--output_path", type=PATH, help="JSON file for the scores of every cell.")
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
