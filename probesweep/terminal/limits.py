"""Resource limits of the machine or the process behind an error: memory, threads, open files."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# Of malloc and mmap, of torch's allocators, and of the loader of shared libraries.
_MEMORY_TEXTS = ("allocate memory", "out of memory", "failed to map segment", "bad_alloc")
_THREAD_TEXTS = ("start new thread", "create thread")


def limit_reached(error: BaseException) -> str | None:
    """One sentence on which limit was reached and how to raise it; None if it was none."""
    for cause in _causes(error):
        number, text = getattr(cause, "errno", None), str(cause)
        if number in (errno.EMFILE, errno.ENFILE):
            return "too many open files; raise the limit with ulimit -n, for example 1024"
        if any(part in text for part in _THREAD_TEXTS):
            return "cannot start a thread; allow more memory or threads (ulimit -v, ulimit -u)"
        if isinstance(cause, MemoryError) or number == errno.ENOMEM or any(part in text for part in _MEMORY_TEXTS):
            said = f" ({' '.join(text.split())[:200]})" if text and not isinstance(cause, ImportError) else ""
            return f"out of memory{said}; allow more (ulimit -v) or use less: --budget_gib, --batch_size, fewer rows"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
