"""The server killed while it takes an object: what it has acknowledged is there when it is back."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from benchmarks.faults.aftermath import aftermath
from benchmarks.faults.counts import Counts
from benchmarks.faults.objects.child import Child
from benchmarks.faults.objects.place import BucketJob, Limits, server
from benchmarks.faults.objects.requests import BRIEF
from benchmarks.shared.proxy import Break, Mistake, Proxy

# The server may take long to be back on a busy machine.
_PATIENT = Limits(attempt_s=5.0, try_s=80.0)


def server_killed(job: BucketJob, numbers: Sequence[int], *, returns: bool) -> Counts:
    """Kill the server when it has half of an object.

    Parameters
    ----------
    job : BucketJob
        Each time from its start.
    numbers : sequence of int
        Which of the job's PUTs.
    returns : bool
        Whether the server is back while requests are repeated, so that the job gets over it, or only later.
    """
    counts = Counts()
    for n in numbers:
        with job.begun() as root, Proxy(server().endpoint) as proxy:
            gone = Event()

            def kill(gone: Event = gone) -> None:
                server().kill()
                gone.set()

            child = Child(job, str(root), proxy.endpoint, _PATIENT if returns else BRIEF)
            proxy.plan(Mistake("PUT", "", Break(kill, "half"), first=n))
            child.start()
            counts.fired += gone.wait(60)
            if returns:
                server().start()
                outcome = child.join()
            else:
                outcome = child.join()
                server().start()
            what = f"the server killed at PUT {n} ({', '.join(proxy.struck)})"
            # The lock's requests end sooner than the server is back.
            locked = any(request.endswith("writer.lock") for request in proxy.struck)
            ended = bool(outcome.error) if not returns else not outcome.error or locked
            counts.expect(ended and outcome.clean, f"{what}: ended with {outcome.error or 'no error'}")
            # For some seconds it takes no objects, or does not find those that it has.
            with _PATIENT.set():
                counts += aftermath(job, root, outcome.acknowledged, what)
    return counts


def count_puts(job: BucketJob) -> int:
    """PUTs of the job that nothing disturbs."""
    with job.begun() as root, Proxy(server().endpoint) as proxy:
        Child(job, str(root), proxy.endpoint).start().join()
        return proxy.counts["PUT"]
