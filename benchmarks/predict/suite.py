"""The prompts of a service in calls of several sizes, timed in turn and compared with single prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from activation_store.capture.session import KnownModel, LoadedModel
from activation_store.prompts.prompts import PromptFormat
from benchmarks.extract.agreement import check_agreement
from benchmarks.extract.subject import Subject
from benchmarks.shared.measure import Contender, Report, StealClock, Table, Target, Timings, hardware, interleave
from benchmarks.shared.prompts import embedded_questions

LIBRARIES = ("torch", "transformers", "numpy")
TRANSFORMERS = "transformers, one by one"
SIZES = (2, 8, 16)


@dataclass(frozen=True)
class Size:
    """How many prompts, and how often.

    Parameters
    ----------
    n_prompts : int
    n_rounds : int
    """

    n_prompts: int
    n_rounds: int


FULL, QUICK = Size(n_prompts=100, n_rounds=5), Size(n_prompts=20, n_rounds=1)


def of_size(size: int) -> str:
    """Name of a contender."""
    return f"calls of {size}"


def measure_predict(size: Size, model: str, device: str) -> Report:
    """Time loops over the same prompts; each contender has a session of its own, which the first round warms up."""
    clock = StealClock()
    subject = Subject.load(model, device)
    layer = 2 * subject.n_blocks // 3
    known = KnownModel.open(model, PromptFormat(), device=device)
    questions = embedded_questions()[: size.n_prompts]
    expected = _by_transformers(subject, questions, layer)
    contenders = [_transformers(subject, questions, layer)]
    for n in (1, *SIZES, len(questions)):
        session = LoadedModel(subject.states((-1,), str(layer)), known)
        contenders.append(_ours(session, questions, n, expected))
    timings = interleave(contenders, n_rounds=size.n_rounds, n_bytes=expected.nbytes)
    setting = {"model": model, "device": device, "dtype": "float32", "layer": layer, **asdict(size)}
    setting["cpu stolen, %"] = clock.percent()
    return Report("predict", hardware(Path(), LIBRARIES), setting, [_table(timings)], _targets(timings, len(questions)))


def _table(timings: Timings) -> Table:
    bases = {"x calls of 1": of_size(1), "x transformers": TRANSFORMERS}
    rows = [
        {"contender": name, **{heading: timings.ratio(name, base) for heading, base in bases.items()}}
        for name in timings.seconds
    ]
    return Table("the same prompts, how many times as fast", rows)


def _targets(timings: Timings, n_prompts: int) -> list[Target]:
    return [
        *(Target(f"{of_size(n)} / {of_size(1)}", 1.0, timings.ratio(of_size(n), of_size(1))) for n in SIZES),
        Target(f"{of_size(n_prompts)} / {TRANSFORMERS}", 4.0, timings.ratio(of_size(n_prompts), TRANSFORMERS)),
        Target(f"{of_size(n_prompts)} / {of_size(1)}", 4.0, timings.ratio(of_size(n_prompts), of_size(1))),
    ]


def _ours(session: LoadedModel, questions: Sequence[str], n: int, expected: np.ndarray) -> Contender:
    """What `Probe.score` does, without the product with the coefficients; warmed up by its first round."""

    def run() -> np.ndarray:
        parts: list[np.ndarray] = []
        for start in range(0, len(questions), n):
            encoded = session.encode(questions[start : start + n])
            found = np.empty((len(encoded.n_tokens), 1, 1, expected.shape[-1]), dtype=np.float32)
            for rows, states in session.run(encoded):
                found[rows] = states
            parts.append(found)
        return np.concatenate(parts)

    def check(round_idx: int) -> None:
        if not round_idx:
            check_agreement(run(), expected, of_size(n))

    return Contender(of_size(n), lambda _: run, check)


def _transformers(subject: Subject, questions: Sequence[str], layer: int) -> Contender:
    return Contender(TRANSFORMERS, lambda _: lambda: _by_transformers(subject, questions, layer), lambda _: None)


@torch.inference_mode()
def _by_transformers(subject: Subject, questions: Sequence[str], layer: int) -> np.ndarray:
    """The last token's hidden state of every prompt, each rendered, tokenized and run alone."""
    found: list[np.ndarray] = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        ids = subject.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"].to(subject.device)
        states = subject.decoder(input_ids=ids, output_hidden_states=True).hidden_states[layer]
        found.append(states[:, -1].cpu().numpy()[:, None, None])
    return np.concatenate(found)
