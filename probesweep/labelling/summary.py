"""What the labels of a file come to, in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MUCH_TRUNCATED = 0.05


@dataclass(frozen=True)
class Summary:
    """What a labelling found.

    Parameters
    ----------
    path : Path
    n_questions, n_attempts : int
    n_judged, n_correct, n_truncated : float
        Of the attempts.
    n_without_rate : int
        Questions of which no attempt was judged.
    """

    path: Path
    n_questions: int
    n_attempts: int
    n_judged: int
    n_correct: float
    n_truncated: int
    n_without_rate: int

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Add up the columns of a file."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table: Any = pq.read_table(path, columns=["n_samples", "n_correct", "n_truncated", "success_rate", "attempts"])
        compute: Any = pc

        def total(values: Any) -> Any:
            return compute.sum(values).as_py() or 0

        return cls(
            path=path,
            n_questions=table.num_rows,
            n_attempts=total(compute.list_value_length(table["attempts"])),
            n_judged=total(table["n_samples"]),
            n_correct=total(table["n_correct"]),
            n_truncated=total(table["n_truncated"]),
            n_without_rate=table["success_rate"].null_count,
        )

    def __str__(self) -> str:
        """In a few lines."""
        share = f"{self.n_correct / self.n_judged:.3f}" if self.n_judged else "none judged"
        lines = [f"{self.path}: {self.n_questions} questions, {self.n_attempts} attempts, share right {share}"]
        if self.n_attempts and self.n_truncated > _MUCH_TRUNCATED * self.n_attempts:
            lines.append(
                f"{self.n_truncated} of {self.n_attempts} attempts ({self.n_truncated / self.n_attempts:.1%}) were cut "
                "off (max_new_tokens=...): the rates may say more about that limit than about the questions"
            )
        if self.n_judged < self.n_attempts:
            lines.append(f"{self.n_attempts - self.n_judged} attempts could not be judged; they count in no rate")
        if self.n_without_rate:
            lines.append(
                f"{self.n_without_rate} questions have no attempt that was judged: their success_rate is null; drop "
                "them before extract"
            )
        if self.n_attempts == self.n_questions:
            lines.append("one attempt each: success_rate is 0 or 1, right or wrong, and no rate")
        return "\n".join(lines)
