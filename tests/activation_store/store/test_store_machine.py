"""Write, kill, fail, resume, corrupt, verify, repair and read, in any order, against a model."""

from hypothesis import HealthCheck, settings

from benchmarks.faults.machine import StoreMachine

TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
