"""``probesweep run``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from probesweep.commands.arguments import PATH, show_seeds, show_trainings
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal


@probesweep.command()
@click.argument("experiment", type=PATH)
@click.option("--init", is_flag=True, help="Write a commented EXPERIMENT to start from, and example data beside it.")
@click.option("--dry_run", is_flag=True, help="Say what every stage would do, and estimate its time; write nothing.")
@click.pass_obj
def run(terminal: Terminal, experiment: Path, init: bool, dry_run: bool) -> None:
    """Run a complete experiment from one file: extract, train, report.

    EXPERIMENT is a TOML file. Finished stages are skipped. After an edit, only stages affected by it are rerun.

    Example: probesweep run --init experiment.toml, then probesweep run experiment.toml
    """
    if init:
        from probesweep.experiment.template import write_template

        written = write_template(experiment)
        terminal.summarize(
            lambda: "\n".join(
                [
                    f"wrote {', '.join(map(str, [experiment, *written.data]))}",
                    *(f"needed first: {command}" for command in written.to_install),
                    f"edit {experiment}, or run the example as it is: probesweep run {experiment}",
                ]
            ),
            lambda: {
                "experiment": str(experiment),
                "data": list(map(str, written.data)),
                "to_install": written.to_install,
            },
        )
        return
    from probesweep.experiment.experiment import Experiment
    from probesweep.experiment.file import ALL_KEYS
    from probesweep.terminal.flags import as_keys

    terminal.wording = partial(as_keys, keys=ALL_KEYS, given=str(experiment))
    loaded = Experiment.load(experiment)
    terminal.wording = partial(as_keys, keys=ALL_KEYS, given=[str(experiment), loaded.settings])
    if dry_run:
        from probesweep.experiment.dry_run import preview

        stages = preview(loaded)
        terminal.answer(lambda: "\n".join(map(str, stages)), lambda: {"stages": [stage.to_json() for stage in stages]})
        return
    folders = loaded.run(terminal.note)
    runs = loaded.seed_runs()
    if runs is None:
        show_trainings(terminal, folders)
    else:
        show_seeds(terminal, runs.folders)
