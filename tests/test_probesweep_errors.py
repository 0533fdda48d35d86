"""Every error of the packages has one base, can be made from its message alone, and keeps what it says in a pickle."""

import copy
import pickle
from collections.abc import Iterator

import pytest

import activation_store.errors
import gpu_probes.errors
import probesweep
import probesweep.errors
import probesweep_ray
from activation_store import StoreError
from activation_store.errors import PromptError
from gpu_probes import ProbeError
from probesweep import ProbesweepError, RequestError


def all_of(base: type[ProbesweepError]) -> Iterator[type[ProbesweepError]]:
    yield base
    for each in base.__subclasses__():
        yield from all_of(each)


ERRORS = list(all_of(ProbesweepError))


def test_the_three_trees_have_one_base():
    modules = (activation_store.errors, gpu_probes.errors, probesweep.errors, probesweep_ray)
    errors = {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Exception) and not issubclass(each, Warning)
    }
    assert errors == set(ERRORS)
    assert {StoreError, ProbeError, RequestError} <= errors
    assert issubclass(ProbeError, ValueError)
    assert issubclass(RequestError, ValueError)
    assert not issubclass(StoreError, ValueError)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_made_from_its_message_alone(kind):
    error = kind("no such layer")
    assert (str(error), error.argument) == ("no such layer", None)


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
@pytest.mark.parametrize("kind", ERRORS)
def test_message_and_argument_cross_process_boundaries(kind, again):
    error = again(kind("no such layer", argument="layers"))
    assert type(error) is kind
    assert (str(error), error.args, error.argument) == ("no such layer", ("no such layer",), "layers")


def test_the_reason_of_a_prompt_that_cannot_be_used_crosses_process_boundaries():
    error = pickle.loads(pickle.dumps(PromptError("row 3 is empty", "empty", argument="question_column")))
    assert (str(error), error.reason, error.argument) == ("row 3 is empty", "empty", "question_column")


def test_the_package_names_its_errors():
    assert {"ProbesweepError", "RequestError"} <= set(probesweep.__all__)
    assert all(hasattr(probesweep, name) for name in probesweep.__all__)
