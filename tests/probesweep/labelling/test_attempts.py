"""Attempts against transformers' own generate, and against themselves in other batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MptConfig

from activation_store.errors import NonFiniteError
from activation_store.prompts.prompts import PromptFormat
from probesweep.errors import RequestError
from probesweep.labelling.attempts import Sampler
from probesweep.labelling.engines.local import LocalEngine
from probesweep.labelling.engines.prompted import PromptedModel
from probesweep.labelling.sampling import Sampling
from tests.helpers.models import CONFIGS, QUESTIONS, train_tokenizer

PREFIX = "<|im_start|>system\nYou answer in one word, and in that word only.<|im_end|>\n"
FAMILIES = sorted(CONFIGS)


def _prompts(folder: Path, prefix: str = "") -> list[np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [np.array(tokenizer(prefix + text)["input_ids"], dtype=np.int32) for text in QUESTIONS]


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _draw(sampler: Sampler, prompts: Sequence[np.ndarray], batch_size: int) -> list[list[tuple[int, ...]]]:
    rows = range(len(prompts))
    return [
        [one.token_ids for one in of_row]
        for start in range(0, len(prompts), batch_size)
        for of_row in sampler.draw(prompts[start : start + batch_size], rows[start : start + batch_size])
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_greedy_answers_are_those_of_generate(tiny_model: Callable[[str], Path], family: str, *, shared: bool) -> None:
    model, prompts = _load(tiny_model(family)), _prompts(tiny_model(family), PREFIX if shared else "")
    # Tokens that such a model chooses often, so that answers end at different steps.
    ends = [1, 17, 200]
    sampler = Sampler(model, Sampling(temperature=0, max_new_tokens=12), ends)
    if shared:
        sampler.share(prompts[0][:8], max(map(len, prompts)) + 12)
    found = _draw(sampler, prompts, 4)
    for prompt, (answer,) in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        out = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
        expected = out[0, ids.shape[1] :].tolist()
        assert list(answer) == [token for token in expected if token not in ends]


def test_an_attempt_differs_between_batch_sizes_from_a_near_tie_on_only(tiny_model: Callable[[str], Path]) -> None:
    model, prompts = _load(tiny_model("llama")), _prompts(tiny_model("llama"))
    sampler = Sampler(model, Sampling(n_samples=5, max_new_tokens=10, seed=3), [1])
    by_size = {size: _draw(sampler, prompts, size) for size in (1, 3, 11)}
    # Random, so that draws differ at all.
    assert len({tokens for of_row in by_size[1] for tokens in of_row}) > 50
    for size in (3, 11):
        for row, (one, other) in enumerate(zip(by_size[1], by_size[size], strict=True)):
            for attempt, (a, b) in enumerate(zip(one, other, strict=True)):
                if a != b:
                    assert _gap(sampler, model, prompts[row], row, attempt, a, b) < 1e-3


def _gap(
    sampler: Sampler, model: Any, prompt: np.ndarray, row: int, attempt: int, a: Sequence[int], b: Sequence[int]
) -> float:
    """How much the two best noisy logits differ where two runs of an attempt part."""
    step = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ids = torch.tensor([[*prompt.tolist(), *a[:step]]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, -1]
    noisy = sampler.noisy(logits, torch.tensor([row]), torch.tensor([attempt]), step)
    best = noisy.topk(2).values[0]
    return float(best[0] - best[1])


@pytest.mark.parametrize(
    "given", [{"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.3}], ids=["cooler", "top_k", "top_p"]
)
def test_first_tokens_have_the_probabilities_of_the_processed_logits(
    tiny_model: Callable[[str], Path], given: dict[str, Any]
) -> None:
    from scipy import stats
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    model, prompt = _load(tiny_model("qwen2")), _prompts(tiny_model("qwen2"))[1]
    n_draws = 4000
    sampler = Sampler(model, Sampling(n_samples=n_draws, max_new_tokens=1, **given), [])
    found = np.bincount([one.token_ids[0] for one in sampler.draw([prompt], [0])[0]], minlength=400)
    with torch.inference_mode():
        scores = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[:, -1]
    scores = TemperatureLogitsWarper(float(given.get("temperature", 1.0)))(None, scores)
    if "top_k" in given:
        scores = TopKLogitsWarper(given["top_k"])(None, scores)
    if "top_p" in given:
        scores = TopPLogitsWarper(given["top_p"])(None, scores)
    expected = torch.softmax(scores[0].double(), 0).numpy() * n_draws
    assert found[expected == 0].sum() == 0
    often = expected >= 5
    observed = np.append(found[often], found[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-3


def test_a_model_without_keys_and_values_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()
    sampler = Sampler(model, Sampling(n_samples=2, max_new_tokens=2), [1])
    with pytest.raises(RequestError, match="engine='openai'"):
        sampler.draw([np.array([3, 4], dtype=np.int32)], [0])


@pytest.mark.parametrize("temperature", [1e-39, 1e-30, 1e-3])
def test_a_temperature_near_0_takes_the_most_probable_token(
    tiny_model: Callable[[str], Path], temperature: float
) -> None:
    model, prompts = _load(tiny_model("llama")), _prompts(tiny_model("llama"))
    greedy = _draw(Sampler(model, Sampling(temperature=0, max_new_tokens=5), [1]), prompts, 4)
    nearly = _draw(Sampler(model, Sampling(n_samples=1, temperature=temperature, max_new_tokens=5), [1]), prompts, 4)
    assert nearly == greedy


def test_nan_is_no_answer(tiny_model: Callable[[str], Path]) -> None:
    model, prompts = _load(tiny_model("llama")), _prompts(tiny_model("llama"))
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    for sampling in (Sampling(n_samples=2, max_new_tokens=2), Sampling(temperature=0, max_new_tokens=2)):
        with pytest.raises(NonFiniteError, match="NaN or infinity"):
            Sampler(model, sampling, [1]).draw(prompts[:2], [0, 1])


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_prefix_that_changes_answers_is_not_reused(batch_size: int | None, tmp_path: Path) -> None:
    # MPT counts distances over padding, which stands behind a shared prefix.
    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=4, n_layers=3, max_seq_len=256, vocab_size=400, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.save_pretrained(tmp_path)
    train_tokenizer().save_pretrained(tmp_path)
    common = "Which of these numbers is the largest: 17, 94, 32, 8? "
    questions = [common + text for text in ("x", "What comes after Monday?", "Hi", "1, 4, 9, 16, ... and so on?")]

    def answers(size: int | None) -> list[list[str]]:
        sampling = Sampling(temperature=0, max_new_tokens=6)
        prompted = PromptedModel.open(str(tmp_path), questions, PromptFormat(), max_new_tokens=6)
        engine = LocalEngine(prompted, sampling, size)
        engine.load()
        found = {
            row: answer for batch, of in engine.answer(engine.plan()) for row, answer in zip(batch, of, strict=True)
        }
        return [[one.text for one in found[row]] for row in range(len(questions))]

    sampler = Sampler(model.eval(), Sampling(temperature=0, max_new_tokens=6), [1])
    encoded = PromptedModel.open(str(tmp_path), questions, PromptFormat(), max_new_tokens=6).encoded
    alone = _draw(sampler, [encoded.row(row) for row in range(len(questions))], 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert answers(batch_size) == [[tokenizer.decode(one[0], skip_special_tokens=True)] for one in alone]
