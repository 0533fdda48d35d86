"""``probesweep extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from activation_store.files.storage import Location
from probesweep.commands.arguments import DATASET, LOCATION, json_object, naming_replaced, shard_bar
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.option("--model", required=True, help='Hub id, local folder, GGUF file, or "smollm2" (bundled).')
@click.option(
    "--dataset_path",
    required=True,
    multiple=True,
    type=DATASET,
    help="Parquet, CSV or JSON Lines file, a save_to_disk folder of datasets, or of the hub "
    "hf://datasets/ORG/NAME/FILE or ORG/NAME:CONFIG:SPLIT; repeat for several.",
)
@click.option(
    "--output_path",
    required=True,
    type=LOCATION,
    help="Zarr store to write, a folder or s3://bucket/x.zarr; x.pt writes x.zarr and x.pt.",
)
@click.option(
    "--label_column",
    multiple=True,
    help="Column of numbers to predict; repeat the flag for several.  [default: success_rate]",
)
@click.option(
    "--group_column", multiple=True, help="Column of numbers or strings to keep for train --groups; repeat for several."
)
@click.option("--question_column", help="Column of strings or chat messages.  [default: question]")
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
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
    from activation_store.pt.convert import check_exportable, export_pt, is_exported
    from activation_store.store.describe import describe_store
    from activation_store.store.health import describe
    from probesweep.labelling.defaults import defaults_of
    from probesweep.outputs import check_file

    options["chat_template_kwargs"] = json_object(options["chat_template_kwargs"], "--chat_template_kwargs")
    output_path: Location = options["output_path"]
    target = output_path if isinstance(output_path, Path) and output_path.suffix == ".pt" else None
    if target:
        options["output_path"] = target.with_suffix(".zarr")
    options |= defaults_of(options)
    extraction = Extraction(**options)
    if target:
        check_file(target, "output_path", options["dataset_path"])
        read = extraction.dataset
        check_exportable(next(iter(read.labels)), read.label_classes)
    if dry_run:
        preview = extraction.preview()
        terminal.answer(lambda: preview, lambda: {"preview": preview})
        return
    if target and not target.is_file():
        check_disk(target, extraction.plan().nbytes + extraction.missing_nbytes())
    store = extraction.run()
    if target and not is_exported(store, target, progress=shard_bar("compare")):
        with naming_replaced(terminal, target):
            export_pt(store, target, progress=shard_bar("export"))
    terminal.summarize(lambda: "\n".join([repr(store), *describe(store.health)]), lambda: describe_store(store))
