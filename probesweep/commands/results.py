"""Commands that read result folders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from activation_store.files.storage import Location
from probesweep.commands.arguments import LOCATION, PATH, naming_replaced
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

    from gpu_probes.results.transfer import DEPTH, find_trainings
    from probesweep.reporting import report_on

    pages = [
        report_on(training.folder, figures=training.folder / "figures" if figures else None)
        for training in tqdm(find_trainings(results, depth=DEPTH), unit="page", desc="report")
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
    from gpu_probes.results.transfer import DEPTH, find_trainings

    found = {one.folder.resolve(): one.results for folder in results for one in find_trainings(folder, depth=DEPTH)}
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

    Prints a table for each result folder anywhere in PROBES, with a row per STORE: the score of the best probe on all
    rows, its interval, its lead over the strongest baseline, and its calibration. Stores of another model have none.

    Example: probesweep transfer results train.zarr test.zarr other.zarr
    """
    from tqdm import tqdm

    from activation_store.files.durable import write_output
    from probesweep.outputs import check_file
    from probesweep.transferring import transfer as transfer_probes

    if output_path is not None:
        check_file(output_path, "output_path", [probes, *stores])
    progress = partial(tqdm, unit="store", desc="transfer")
    found = transfer_probes(probes, stores, label_column=label_column, progress=progress)
    document = found.to_json()
    if output_path is not None:
        output_path.parent.mkdir(parents=True, exist_ok=True)
        with naming_replaced(terminal, output_path):
            write_output(output_path, [json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"])
    terminal.answer(lambda: str(found), lambda: document)
