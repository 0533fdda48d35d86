"""Every request of the job struck in turn: its sender killed, its answer lost or another one; and a longer outage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.counts import Counts
from benchmarks.faults.objects.child import Child, Outcome
from benchmarks.faults.objects.place import BucketJob, Limits, server
from benchmarks.shared.proxy import Answer, Break, Cut, Delay, Effect, LoseAnswer, LoseRequest, Mistake, Proxy

Sent = Literal["nothing", "half", "all"]

KILLS: Mapping[str, Sent] = {"before": "nothing", "in the middle of": "half", "after": "all"}
_ALWAYS = 10**6
# One attempt at something else than the lock, and one at the lock, end before a slow answer comes.
SHORT = Limits(attempt_s=1.0, try_s=20.0, renew_s=1.0, lease_s=4.0)
SLOW_S = 1.3
BRIEF = Limits(attempt_s=1.0, try_s=0.3, renew_s=1.0, lease_s=4.0)


def _nothing() -> None:
    pass


MISTAKES: Mapping[str, Effect] = {
    "answered with 500": Answer(500),
    "answered with 503": Answer(503, "SlowDown"),
    "lost on its way": LoseRequest(),
    "lost in the middle": Break(_nothing, "half"),
    "done, its answer lost": LoseAnswer(),
    "answered with half a body": Cut(20),
    "answered with a body that is declared shorter": Cut(20, declared=False),
    "answered slowly": Delay(SLOW_S),
}
OUTAGES: Mapping[str, Effect] = {"503": Answer(503, "SlowDown"), "no answer": LoseAnswer()}


@dataclass(frozen=True)
class Fault:
    """What happens to which request of the job, counted from 1."""

    what: str
    n: int

    def __str__(self) -> str:
        return f"request {self.n} {self.what}"


def count_requests(job: BucketJob) -> int:
    """Requests of the job that nothing disturbs."""
    with job.begun() as root, Proxy(server().endpoint) as proxy:
        outcome = Child(job, str(root), proxy.endpoint).start().join()
        assert not outcome.error, outcome.error
        return sum(proxy.counts.values())


def struck(
    job: BucketJob,
    numbers: Sequence[int],
    kinds: Mapping[str, Callable[[Child], Effect]],
    judge: Callable[[Counts, str, Outcome, list[str]], None],
    *,
    count: int = 1,
    limits: Limits | None = None,
    method: str = "",
    key: str = "",
) -> Counts:
    """Do the job once for each request and each kind of fault, look at what is left, and do it again.

    Parameters
    ----------
    job : BucketJob
        Each time from its start.
    numbers : sequence of int
        Of the requests.
    kinds : mapping of str to callable
        What happens -> the effect on the request, given the process that sends it.
    judge : callable
        Given the counts, what happened, how the job ended, and the requests that were struck.
    count : int
        How many requests in a row.
    limits : Limits
        Of the process.
    method, key : str
        Count only such requests, as `Mistake` has them.
    """
    counts = Counts()
    for n in numbers:
        for what, effect in kinds.items():
            with job.begun() as root, Proxy(server().endpoint) as proxy:
                child = Child(job, str(root), proxy.endpoint, limits)
                proxy.plan(Mistake(method, key, effect(child), first=n, count=count))
                outcome = child.start().join()
                fault = str(Fault(f"{what} ({', '.join(proxy.struck[:1])})", n))
                counts.fired += bool(proxy.struck)
                judge(counts, fault, outcome, proxy.struck)
                counts += aftermath(job, root, outcome.acknowledged, fault)
    return counts


def killed(job: BucketJob, numbers: Sequence[int]) -> Counts:
    """Kill the process before, in the middle of and after each of these requests."""

    def judge(counts: Counts, fault: str, outcome: Outcome, _: list[str]) -> None:
        counts.expect(outcome.killed, f"killed at {fault}: was not")

    kinds = {f"killed {when}": partial(_kill, sent) for when, sent in KILLS.items()}
    return struck(job, numbers, kinds, judge)


def _kill(sent: Sent, child: Child) -> Effect:
    return Break(child.kill, sent)


def failing(job: BucketJob, numbers: Sequence[int], method: str = "", key: str = "") -> Counts:
    """Make one mistake at each of these requests: the job gets over it."""

    def judge(counts: Counts, fault: str, outcome: Outcome, requests: list[str]) -> None:
        # An answer that comes late is of no use to a lock: that is said, and nothing is written.
        # (The request that deletes it does not name it.)
        of_lock = (bool(requests) and requests[0].endswith("writer.lock")) or "/writer.lock" in str(outcome.error)
        may_end = "slowly" in fault and of_lock
        counts.refused += bool(outcome.error)
        counts.expect(not outcome.error or bool(may_end and outcome.clean), f"{fault}: {outcome.error}")

    kinds = {what: partial(_same, effect) for what, effect in MISTAKES.items()}
    return struck(job, numbers, kinds, judge, limits=SHORT, method=method, key=key)


def _same(effect: Effect, _: Child) -> Effect:
    return effect


def outage(job: BucketJob, numbers: Sequence[int]) -> Counts:
    """Let the server fail from each of these requests on, for longer than they are repeated; then it works again."""

    def judge(counts: Counts, fault: str, outcome: Outcome, _: list[str]) -> None:
        # The last request of all removes the lock of a store that is complete.
        counts.expect(bool(outcome.error) and outcome.clean, f"{fault}: ended with {outcome.error or 'no error'}")

    kinds = {f"and all later ones: {what}": partial(_same, effect) for what, effect in OUTAGES.items()}
    return struck(job, numbers, kinds, judge, count=_ALWAYS, limits=BRIEF)
