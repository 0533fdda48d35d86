"""Write, kill, fail, resume, corrupt, verify, repair and read, in any order, against a model."""

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.faults.machine import StoreMachine

TestStoreMachine = pytest.mark.slow(StoreMachine.TestCase)
TestStoreMachine.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
