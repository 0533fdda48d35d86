"""What vLLM is given and how its answers are taken, with a stand-in for it: it does not install beside our torch."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from probesweep import Labelling, RequestError
from tests.helpers.models import QUESTIONS


class StandIn(ModuleType):
    """The part of vLLM's interface that is used, by its documentation."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.asked: list[tuple[list[int], Any]] = []
        self.loaded: list[dict[str, Any]] = []

    def SamplingParams(self, **given: Any) -> Any:  # noqa: N802 - vLLM's name
        return SimpleNamespace(**given)

    def LLM(self, **given: Any) -> Any:  # noqa: N802 - vLLM's name
        self.loaded.append(given)
        return SimpleNamespace(generate=self._generate)

    def _generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.asked += [(one["prompt_token_ids"], each) for one, each in zip(prompts, parameters, strict=True)]
        output = SimpleNamespace(text="a", finish_reason="stop", token_ids=[7, 8])
        cut = SimpleNamespace(text="a a a", finish_reason="length", token_ids=[7] * 6)
        return [SimpleNamespace(outputs=[cut if n % 2 else output]) for n in range(len(prompts))]


@pytest.fixture
def given(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "questions.parquet"
    pd.DataFrame({"question": QUESTIONS[:3], "answer": ["a", "b", "a"]}).to_parquet(path)
    return {
        "model": str(tiny_model("llama")),
        "dataset_path": path,
        "output_path": tmp_path / "out.parquet",
        "verifier": "contains",
        "engine": "vllm",
        "n_samples": 2,
        "top_k": 9,
        "max_new_tokens": 6,
        "batch_size": 2,
    }


def test_it_gets_our_token_ids_and_a_seed_for_each_attempt(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr("probesweep.labelling.engines.vllm.version", lambda name: f"{name} version")
    summary = Labelling(**given).run()
    frame = pd.read_parquet(given["output_path"])
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    prompts = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in frame["formatted_prompt"]}
    assert {tuple(ids) for ids, _ in vllm.asked} == prompts
    assert vllm.loaded[0]["model"] == given["model"]
    # Of each attempt: where requests have several sequences, those of neighbours would share their seeds.
    assert len({parameters.seed for _, parameters in vllm.asked}) == 6
    assert {(one.top_k, one.max_tokens, one.temperature) for _, one in vllm.asked} == {(9, 6, 1.0)}
    assert frame["success_rate"].tolist() == [0.5, 0.0, 0.5]
    assert (summary.n_attempts, summary.n_truncated) == (6, 3)


def test_without_it_the_way_out_is_said_before_anything_is_loaded(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RequestError, match="needs vLLM"):
        Labelling(**given).run()
    assert not given["output_path"].exists()
