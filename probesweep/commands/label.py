"""``probesweep label``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from probesweep.commands.arguments import DATASET, PATH, json_object
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.option("--model", help='Hub id, local folder, GGUF file, or "smollm2" (bundled); a name on the server.')
@click.option(
    "--dataset_path",
    multiple=True,
    type=DATASET,
    help="Questions with answers: what extract reads; repeat for several.",
)
@click.option("--output_path", required=True, type=PATH, help="Parquet file to write.")
@click.option(
    "--verifier",
    help="exact, contains, number, choice, math, regex:PATTERN or python:FILE:FUNCTION.",
)
@click.option("--from", "from_file", type=PATH, help="Take up labels that are there: a log, graded answers, counts.")
@click.option("--metric", help="With --from: which of several scores.")
@click.option("--question_column", help="Column of strings or chat messages.  [default: question]")
@click.option("--answer_column", help="Column of what is right; a list: any of these.  [default: answer]")
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm", "openai"]),
    default="transformers",
    show_default=True,
    help="In this process, or a server that speaks OpenAI's chat protocol.",
)
@click.option("--base_url", help="Of the server, such as http://localhost:8000/v1; its key: OPENAI_API_KEY.")
@click.option("--concurrency", type=int, default=32, show_default=True, help="Most requests to the server at once.")
@click.option("--n_samples", type=int, help="Attempts at each question.  [default: 8; 1 at temperature 0]")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0: the most probable tokens.")
@click.option("--top_p", type=float, default=1.0, show_default=True, help="Draw from the fewest tokens that have this.")
@click.option("--top_k", type=int, help="Draw from so many of the most probable tokens.  [default: all]")
@click.option("--max_new_tokens", type=int, default=256, show_default=True, help="Most tokens of an answer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every draw.")
@click.option("--system_prompt", help="Goes first in every prompt.")
@click.option("--prompt_template", help="What the user says: {question}, perhaps other columns in braces, \\n.")
@click.option(
    "--no_chat_template",
    "use_chat_template",
    flag_value=False,
    default=True,
    help="The model reads each question as it is.",
)
@click.option("--chat_template_kwargs", help="""JSON for the template, such as '{"enable_thinking": false}'.""")
@click.option("--max_length", type=int, help="Most tokens of a prompt.  [default: what the model takes]")
@click.option(
    "--truncated",
    type=click.Choice(["wrong", "drop"]),
    help="What an answer that was cut off counts as; drop: not judged.  [default: wrong; with --from as it is]",
)
@click.option(
    "--verify_errors",
    type=click.Choice(["stop", "null"]),
    default="stop",
    show_default=True,
    help="null: an answer on which the verifier fails is not judged.",
)
@click.option("--max_samples", type=int, help="Use only the first N rows.")
@click.option("--batch_size", type=int, help="Most questions in a batch.  [default: what fits into free memory]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
@click.option("--dtype", default="auto", show_default=True, help="auto (the checkpoint's), float32, float16, bfloat16.")
@click.option("--trust_remote_code", is_flag=True, help="Run code from the model's repository.")
@click.option(
    "--dry_run", is_flag=True, help="Print the first prompt, and the verifier's view of answers; run nothing."
)
@click.pass_obj
def label(terminal: Terminal, dry_run: bool, from_file: Path | None, metric: str | None, **options: Any) -> None:
    """Sample a model's answers to questions, verify them, and write the share that is right.

    The output goes into extract. To resume an interrupted labelling, run the same command again.

    Example: probesweep label --model smollm2 --dataset_path data/success_smollm2_test.parquet --output_path
    test.parquet --verifier number --max_new_tokens 16

    Example: probesweep label --from samples_gsm8k.jsonl --output_path train.parquet
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if from_file is not None:
        _take(terminal, from_file, metric, dry_run, given)
        return
    missing = [f"--{name}" for name in ("model", "dataset_path", "verifier") if name not in given]
    if missing:
        raise click.UsageError(f"give {', '.join(missing)}, or --from")
    if metric is not None:
        raise click.UsageError("--metric is for --from")
    terminal.wait(f"loading {given['model']} ...")
    from probesweep.labelling.labelling import Labelling

    for name in ("prompt_template", "system_prompt"):
        if name in given:
            # A shell passes on a backslash as it is.
            given[name] = re.sub(r"\\([n\\])", lambda found: "\n" if found[1] == "n" else "\\", given[name])
    given["chat_template_kwargs"] = json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    labelling = Labelling(**given)
    if dry_run:
        preview = labelling.preview()
        terminal.answer(lambda: preview, lambda: {"preview": preview})
        return
    _summarize(terminal, labelling.run())


def _take(terminal: Terminal, from_file: Path, metric: str | None, dry_run: bool, given: dict[str, Any]) -> None:
    """Take up the labels of a file."""
    from probesweep.labelling.taking import Taking

    kept = {
        name: given.pop(name)
        for name in ("output_path", "question_column", "answer_column", "truncated")
        if name in given
    }
    source = click.get_current_context().get_parameter_source
    others = [f"--{name}" for name in given if source(name) is click.core.ParameterSource.COMMANDLINE]
    if dry_run or others:
        raise click.UsageError(f"{', '.join(others) or '--dry_run'} cannot be given with --from: nothing is sampled")
    summary, recognized = Taking(from_file, metric=metric, **kept).run()
    terminal.note(recognized)
    _summarize(terminal, summary)


def _summarize(terminal: Terminal, summary: Any) -> None:
    document: dict[str, Any] = {**vars(summary), "path": str(summary.path)}
    terminal.summarize(lambda: terminal.wording(str(summary)), lambda: document)
