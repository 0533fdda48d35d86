"""Limits of the machine, or set for the process, that an error comes from: memory, threads, open files."""

from __future__ import annotations

import errno
from collections.abc import Iterator

# Of malloc and mmap, of torch's allocators, and of the loader of shared libraries.
_MEMORY_TEXTS = ("allocate memory", "out of memory", "failed to map segment", "bad_alloc")
_THREAD_TEXTS = ("start new thread", "create thread")


def limit_reached(error: BaseException) -> str | None:
    """Say in a sentence which limit an error comes from, and the way out; None where it comes from none."""
    for cause in _causes(error):
        number, text = getattr(cause, "errno", None), str(cause)
        if number in (errno.EMFILE, errno.ENFILE):
            return "more files are open than is allowed; allow more with ulimit -n, such as 1024"
        if any(part in text for part in _THREAD_TEXTS):
            return "a thread could not be started; allow more memory or threads (ulimit -v, ulimit -u)"
        if isinstance(cause, MemoryError) or number == errno.ENOMEM or any(part in text for part in _MEMORY_TEXTS):
            said = f" ({' '.join(text.split())[:200]})" if text and not isinstance(cause, ImportError) else ""
            return (
                f"there is not enough memory{said}; allow more (ulimit -v), or ask for less: --budget_gib, "
                "--batch_size, fewer rows"
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
