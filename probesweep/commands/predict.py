"""``probesweep predict``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from probesweep.commands.arguments import DATASET, PATH, json_object, naming_replaced
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal

if TYPE_CHECKING:
    import numpy as np


@probesweep.command()
@click.option("--probe", required=True, type=PATH, help="Result folder of train, with a best probe.")
@click.option(
    "--dataset_path",
    "--dataset",
    type=DATASET,
    help="New prompts: what extract reads; -: JSON Lines from standard input.",
)
@click.option(
    "--output_path", "--output", type=PATH, help="Where to write the rows with scores: .parquet, .csv or .jsonl."
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option(
    "--use_chat_template",
    is_flag=True,
    help="For a probe of a .pt: prompts are bare text; render each with the chat template.",
)
@click.option("--chat_template_kwargs", help="For a probe of a .pt: JSON for the template.")
@click.option(
    "--eoi_tokens", type=int, help="For a probe of a .pt: read the last N tokens.  [default: the chat template's tail]"
)
@click.option("--dtype", help="For a probe of a .pt: what its model computed in.  [default: the checkpoint's]")
@click.option("--trust_remote_code", is_flag=True, help="Run code from the model's repository.")
@click.pass_obj
def predict(
    terminal: Terminal,
    probe: Path,
    dataset_path: Path | str | None,
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
    from probesweep.use.place import check_model_is_there

    check_model_is_there(probe, options["model"])
    terminal.wait("loading the probe and its model ...")
    from probesweep.terminal.standard_input import dataset_file, texts_of
    from probesweep.use.prediction import Probe
    from probesweep.use.scored_datasets import score_dataset, score_texts

    # A flag that is not given says nothing.
    options["use_chat_template"] = options["use_chat_template"] or None
    options["chat_template_kwargs"] = json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    opened = Probe.load(probe, **options)
    if dataset_path is None or output_path is None:
        scored = score_texts(opened, texts_of(text), on_error=on_error)
        terminal.answer(lambda: str(scored), scored.records)
        return
    with dataset_file(dataset_path) as rows, naming_replaced(terminal, output_path):
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


def _prompt_bar(batches: Any, n_prompts: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from tqdm import tqdm

    with tqdm(total=n_prompts, unit="prompt", desc="predict") as bar:
        for rows, states in batches:
            yield rows, states
            bar.update(len(rows))
