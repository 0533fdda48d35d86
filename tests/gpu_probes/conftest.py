import pytest
import torch
from hypothesis import settings

# Small problems: a second thread costs more than it gives, and it fights with whatever else runs.
torch.set_num_threads(1)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


# How long one example takes is the machine's affair, and shape checks make it longer.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
