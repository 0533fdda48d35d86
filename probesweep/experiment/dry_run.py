"""What a run of an experiment would do, stage by stage: sizes and times, and nothing is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from activation_store import ActivationStore
from activation_store.extraction.estimate import Speed
from activation_store.extraction.extract import Extraction
from activation_store.store.documents import is_store
from probesweep.experiment.experiment import Experiment, Plan, Split, finished_store
from probesweep.labelling.labelling import progress_of

_WIDTH = 16


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes
    ----------
    name : str
        As `probesweep run` calls it.
    does : str
        nothing, resume, or run.
    why : str
    details : list of str
        Sizes, and what the time was estimated from.
    seconds : float
        An estimate; 0 where there is nothing to do.
    """

    name: str
    does: Literal["nothing", "resume", "run"]
    why: str
    details: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{self.name:{_WIDTH}}{self.does}: {self.why}", *(f"{'':{_WIDTH}}{line}" for line in self.details)]
        return "\n".join(lines)


def preview(experiment: Experiment) -> list[Stage]:
    """Say what `Experiment.run` would do.

    Raises
    ------
    ProbesweepError
        As `Experiment.run`, for what is found before the work begins.
    """
    experiment.pin()
    stages = [_labelled(experiment, split) for split in experiment.splits if experiment.labelling(split) is not None]
    if any(stage.does != "nothing" for stage in stages):
        return [*stages, *(Stage(name, "run", "it follows the labels") for name in ("extract", "train", "report"))]
    plan = experiment.plan()
    speed: Speed | None = None
    for split, extraction in plan.extractions.items():
        if split not in plan.pending:
            stages.append(_stored(split, plan.stores[split]))
            continue
        speed = speed or extraction.measure()
        stages.append(_extracted(split, extraction, plan.stores[split], speed))
    stages.append(_trained(plan))
    if all(stage.does == "nothing" for stage in stages):
        stages.append(Stage("report", "nothing", "unless report.html was changed or removed"))
    else:
        stages.append(Stage("report", "run", "it follows the results"))
    track = experiment.settings["report"]["track"]
    if track:
        stages.append(Stage("track", "run", f"scores and figures go to {track}"))
    return stages


def _labelled(experiment: Experiment, split: Split) -> Stage:
    labelling = experiment.labelling(split)
    assert labelling is not None
    name, path = f"label {split}", Path(labelling.output_path)
    if experiment.is_labelled(split, labelling):
        return Stage(name, "nothing", f"{path} has the labels of this request")
    experiment.check_unlabelled(split, labelling)
    shown = labelling.preview().splitlines()
    if path.exists():
        return Stage(name, "run", f"{path} has other inputs; it is kept under another name", shown)
    if progress_of(path).exists():
        return Stage(name, "resume", f"{progress_of(path)} has the attempts that are done", shown)
    return Stage(name, "run", f"there is no {path} yet", shown)


def _stored(split: Split, store: ActivationStore) -> Stage:
    places = f"{len(store.layers)} layers and {len(store.positions)} positions"
    return Stage(f"extract {split}", "nothing", f"{store.path} has the hidden states of its prompts at {places}")


def _extracted(split: Split, extraction: Extraction, planned: ActivationStore, speed: Speed) -> Stage:
    layout, path = planned.spec.layout, planned.path
    does: Literal["resume", "run"] = "run"
    if not is_store(path):
        why = "there is no store yet"
    elif extraction.is_resumable() and finished_store(path) is None:
        does, why = "resume", f"{ActivationStore.open(path).n_committed} of {len(planned)} rows are there"
    else:
        others = ", ".join(extraction.lacking(ActivationStore.open(path))) or "more layers or positions"
        why = f"{path} has other inputs ({others}); it is kept under another name"
    seconds = extraction.seconds(speed)
    sizes = f"{list(planned.shape)} {planned.spec.dtype}, {_size(layout.store_nbytes)}"
    return Stage(
        f"extract {split}",
        does,
        why,
        [
            f"store {path}: {sizes}; {_size(extraction.missing_nbytes())} to be written",
            f"about {_time(seconds)}, estimated from {speed.n_batches} batches; the model loads in "
            f"{_time(speed.load_s)}",
        ],
        seconds,
    )


def _trained(plan: Plan) -> Stage:
    first, n_seeds = plan.trainings[0], len(plan.trainings)
    if not plan.pending and all(training.is_finished() for training in plan.trainings):
        return Stage("train", "nothing", f"{first.output_dir} has the results of this request")
    timing = first.time_cells(plan.stores["train"], plan.stores.get("test"))
    seconds = n_seeds * (timing.fit_s + timing.statistics_s)
    stand_in = ", on random numbers as there are no hidden states yet" if timing.at_random else ""
    memory = timing.memory
    return Stage(
        "train",
        "run",
        f"no results of this request in {first.output_dir}",
        [
            f"{timing.n_cells} cells{f' with each of {n_seeds} seeds' if n_seeds > 1 else ''}; predictions "
            f"{_size(memory.result_nbytes)}, memory for fits at most {_size(memory.budget_bytes)}",
            f"about {_time(seconds)}, estimated from {timing.n_timed} cells{stand_in}; {_time(timing.statistics_s)} of "
            "it for the statistics of the best probe",
        ],
        seconds,
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
