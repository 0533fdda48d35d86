"""``probesweep train``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from probesweep.commands.arguments import DATASET, LOCATION, PATH, show_seeds, show_trainings
from probesweep.commands.group import probesweep
from probesweep.terminal.command import Terminal

if TYPE_CHECKING:
    from probesweep.tracking.track import Kind

_TRACKERS = click.Choice(["wandb", "mlflow", "tensorboard"])


@probesweep.command()
@click.option("--train_activations", required=True, type=LOCATION, help="Store (or .pt) of the training rows.")
@click.option("--test_activations", type=LOCATION, help="Store (or .pt) of the test rows.  [default: no test set]")
@click.option(
    "--test_rows", help="Test instead on rows of the training store: 0-99,200, or a column and its value: split=test."
)
@click.option(
    "--test_fraction",
    type=float,
    help="Test instead on a random part of the training store, such as 0.2; --groups and repeated prompts stay whole.",
)
@click.option("--output_dir", required=True, type=PATH, help="Folder for the results.")
@click.option("--layers", default="all", show_default=True, help="Layers of the stores to use: all, 10-20, -1.")
@click.option("--positions", default="all", show_default=True, help="Positions of the stores to use: all, -1, -4..-1.")
@click.option(
    "--task_type",
    type=click.Choice(["auto", "regression", "classification"]),
    default="auto",
    show_default=True,
    help="auto: scikit-learn's type_of_target of the training labels.",
)
@click.option(
    "--probe",
    type=click.Choice(["auto", "ridge", "logistic", "binomial", "lda", "mass_mean"]),
    default="auto",
    show_default=True,
    help="auto: ridge for regression, logistic for classes. binomial: log loss of success rates.",
)
@click.option(
    "--positive_class",
    help="The one of two classes that is scored, by name.  [default: the last in the order of the classes]",
)
@click.option(
    "--join", help="Probe on joined cells: layers (all of a position), mean (over positions), or 20@-4,18@-1."
)
@click.option(
    "--label_column", multiple=True, help="Label to predict; repeat for several.  [default: all in the store]"
)
@click.option(
    "--labels",
    type=DATASET,
    multiple=True,
    help="File with labels, groups or weights, joined to the rows by prompt; repeat for several.",
)
@click.option(
    "--test_labels", type=DATASET, multiple=True, help="The same for the test rows.  [default: the file --labels]"
)
@click.option("--question_column", help="Column of questions in these files.  [default: as the store was extracted]")
@click.option("--max_samples", type=int, help="Use only the first N rows of these files.")
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
@click.option(
    "--weight_column",
    help="Label column of the training rows that holds sample weights.  [default: n_samples for binomial, if there]",
)
@click.option("--k_fold", is_flag=True, help="Cross-validate on the training rows; without it no best probe is chosen.")
@click.option("--n_folds", default=5, show_default=True, help="Number of folds.")
@click.option("--seed", default=42, show_default=True, help="Seed of the folds and of everything else drawn at random.")
@click.option("--seeds", help="Several, such as 1,2,3: a folder of results each, and the mean and SD of their scores.")
@click.option("--groups", help="Column of the training rows whose samples are held out together (--group_column).")
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
    "--permutation_statistic",
    type=click.Choice(["least_squares", "probe"]),
    default="least_squares",
    show_default=True,
    help="For classes and binomial, whose CV scores permutations compare: least squares, or the probe (slow).",
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
def train(terminal: Terminal, track: Kind | None, seeds: str | None, **options: Any) -> None:
    """Fit a linear probe at every layer and position of a store; the model is not needed.

    Ridge for regression (Spearman), logistic for classes (ROC-AUC). Several labels get a folder each. A finished
    training is not repeated.

    Example: probesweep train --train_activations train.zarr --test_activations test.zarr --output_dir results
    --k_fold --alphas 1,100,10000
    """
    from probesweep import Training
    from probesweep.seeds import SeedRuns

    if track is not None:
        # With every figure.
        from probesweep.tracking.track import check_installed

        check_installed(track)
    for name in ("labels", "test_labels"):
        options[name] = options[name] or None
    training = Training(**options)
    if seeds is None:
        folders = training.run()
        found = list(folders.values())
        show = partial(show_trainings, terminal, folders)
    else:
        by_seed = SeedRuns(training, seeds).run()
        found = [folder for of_label in by_seed.values() for folder in of_label.values()]
        show = partial(show_seeds, terminal, by_seed)
    if track is not None:
        from probesweep.tracking.track import track as send

        for folder in found:
            sent = send(track, folder)
            if sent:
                terminal.note(f"{track}: {sent}")
    show()
