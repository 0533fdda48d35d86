"""Peak memory as questions are added."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.shared.measure import Limit, Spread, Table, Target
from benchmarks.shared.process import watch
from benchmarks.shared.prompts import embedded_questions

GROWTH = (1, 4, 16)
_ATTEMPTS, _TOKENS, _BATCH = 2, 4, 8


def measure_memory(model: str, *, n_questions: int) -> tuple[Sequence[Table], Sequence[Target | Limit]]:
    """Label 1, 4 and 16 times as many questions, each in a process of its own."""
    questions = embedded_questions()[:n_questions]
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for times in GROWTH:
            path = Path(folder) / f"{times}.parquet"
            pd.DataFrame({"question": questions * times, "answer": "1"}).to_parquet(path)
            usage = watch(_label, model, path, log=Path(folder) / "log")
            if usage.exit_code:
                raise RuntimeError(usage.message)
            peaks.append((usage.peak_nbytes - usage.ready_nbytes) / 2**20)
    rows = [
        {"questions": str(n_questions * times), "MiB above the start": f"{peak:.0f}"}
        for times, peak in zip(GROWTH, peaks, strict=True)
    ]
    return [Table("peak memory of a labelling, the model included", rows)], [
        Limit("peak memory of 16 times the questions, over that of 1", 1.05, Spread.of([peaks[-1] / peaks[0]]))
    ]


def _label(begin: Callable[[], None], model: str, path: Path) -> None:
    import torch

    from probesweep.labelling.labelling import Labelling

    torch.set_num_threads(2)
    begin()
    Labelling(
        model,
        path,
        path.with_suffix(".out.parquet"),
        "contains",
        n_samples=_ATTEMPTS,
        max_new_tokens=_TOKENS,
        batch_size=_BATCH,
    ).run()
