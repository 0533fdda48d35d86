"""``probesweep label``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from probesweep.commands.arguments import PATH, json_object
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.option("--model", help='Hub id, local folder, GGUF file, or "smollm2" (bundled); a name on the server.')
@click.option(
    "--dataset_path",
    multiple=True,
    type=PATH,
    help="Questions with answers: parquet, CSV or JSON Lines, or a save_to_disk folder; repeat for several.",
)
@click.option("--output_path", required=True, type=PATH, help="Parquet file to write.")
@click.option(
    "--verifier",
    help="exact, contains, number, choice, math, regex:PATTERN or python:FILE:FUNCTION.",
)
@click.option("--question_column", default="question", show_default=True, help="Column of strings or chat messages.")
@click.option(
    "--answer_column", default="answer", show_default=True, help="Column of what is right; a list: any of these."
)
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
@click.option("--prompt_template", help="What the user says: {question}, and perhaps other columns in braces.")
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
    default="wrong",
    show_default=True,
    help="What an answer that was cut off counts as; drop: not judged.",
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--dtype", default="auto", show_default=True, help="auto (the checkpoint's), float32, float16, bfloat16.")
@click.option("--trust_remote_code", is_flag=True, help="Run code from the model's repository.")
@click.option(
    "--dry_run", is_flag=True, help="Print the first prompt, and the verifier's view of answers; run nothing."
)
@click.pass_obj
def label(terminal: Terminal, dry_run: bool, **options: Any) -> None:
    """Sample a model's answers to questions and verify them: how often is each one right?

    The output goes into extract. To resume an interrupted labelling, run the same command again.

    Example: probesweep label --model smollm2 --dataset_path data/success_smollm2_test.parquet --output_path test.parquet
    --verifier number --max_new_tokens 16
    """
    terminal.wait(f"loading {options['model']} ...")
    from probesweep.labelling.labelling import Labelling

    options["chat_template_kwargs"] = json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    labelling = Labelling(**options)
    if dry_run:
        preview = labelling.preview()
        terminal.answer(lambda: preview, lambda: {"preview": preview})
        return
    summary = labelling.run()
    terminal.summarize(lambda: terminal.wording(str(summary)), lambda: vars(summary) | {"path": str(summary.path)})
