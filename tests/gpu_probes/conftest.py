import os

import pytest
import torch
from hypothesis import settings

# Small problems: a second thread costs more than it gives, and it fights with whatever else runs.
torch.set_num_threads(int(os.environ.get("PROBE_TEST_THREADS", "1")))


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


# How long one example takes is the machine's affair, and shape checks make it longer.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
