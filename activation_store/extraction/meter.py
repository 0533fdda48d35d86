"""Progress of an extraction on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from tqdm import tqdm

from activation_store.store.writer import StoreWriter


class Meter:
    """A bar: rows, time left, tokens per second, shards committed; with several processes how many are at work."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._started = time.monotonic()
        self._n_tokens = 0
        spec = writer.spec
        self._bar = tqdm(
            total=spec.n_samples,
            initial=self._n_committed_rows,
            unit="row",
            desc=f"extract {str(writer.path).rsplit('/', 1)[-1]}",
        )

    def update(self, n_rows: int, n_tokens: int) -> None:
        """Count a batch that went through the model."""
        self._n_tokens += n_tokens
        self._say(f"{self._writer.n_committed_shards} shards on disk")
        self._bar.update(n_rows)

    def show(self, n_begun_rows: int, n_tokens: int, n_workers: int) -> None:
        """Show what several workers have done: rows of shards that are not committed, and tokens of all."""
        self._n_tokens = n_tokens
        alive = f"{n_workers} worker{'s' * (n_workers != 1)}"
        self._say(f"{self._writer.n_committed_shards} shards on disk, {alive}")
        self._bar.update(self._n_committed_rows + n_begun_rows - self._bar.n)

    @property
    def _n_committed_rows(self) -> int:
        layout = self._writer.spec.layout
        return layout.n_samples - sum(len(layout.rows(shard)) for shard in self._writer.pending_shards)

    def _say(self, note: str) -> None:
        speed = self._n_tokens / (time.monotonic() - self._started)
        self._bar.set_postfix_str(f"{speed:.0f} tokens/s, {note}", refresh=False)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
