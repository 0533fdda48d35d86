"""Judges answers with math-verify: JSON objects in, line by line, and one out for each. Run as a script.

It imports nothing of probesweep, so that it starts quickly.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from typing import Any

# SymPy can also take all memory.
_MEMORY_NBYTES = 4 * 2**30
# After the limit the process is killed from outside; by itself, if nobody is there any more.
_GRACE_S = 5


def main() -> None:
    """Answer until the input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bounded = _MEMORY_NBYTES if most == resource.RLIM_INFINITY else min(_MEMORY_NBYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (bounded, most))
    for line in sys.stdin:
        question = json.loads(line)
        signal.alarm(math.ceil(question["limit_s"]) + _GRACE_S)
        try:
            answer = _judge(question) if "text" in question else {"readable": all(map(_gold, question["answers"]))}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


def _judge(question: dict[str, Any]) -> dict[str, Any]:
    import math_verify

    found = _parsed(question["text"])
    if not found:
        return {"extracted": None, "correct": 0.0}
    # Without time limits of its own, which are signals: the one who asks has one.
    right = any(
        math_verify.verify(_gold(each), found, timeout_seconds=None, raise_on_error=True)
        for each in question["answers"]
    )
    return {"extracted": str(found[0]), "correct": float(right)}


def _gold(answer: str) -> list[Any]:
    """A reference answer: a formula, with or without the marks of one."""
    has_marks = any(mark in answer for mark in ("$", "\\(", "\\[", "\\boxed"))
    return _parsed(answer if has_marks else f"${answer}$") or _parsed(answer)


def _parsed(text: str) -> list[Any]:
    import math_verify

    # As for `verify`; its annotation knows only numbers.
    return math_verify.parse(text, parsing_timeout=0, raise_on_error=True)


if __name__ == "__main__":
    main()
