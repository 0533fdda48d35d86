"""A model of the size that cards are for: random weights in bfloat16, made on the device; speed, share of its peak."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from activation_store.capture.footprint import weights_nbytes
from activation_store.prompts.prompts import Prompts
from benchmarks.extract.methods import BATCH_ROWS, extract_ours, make_plan, make_spec
from benchmarks.extract.speed import BARE, ORIGINAL, Way, original_targets, race_original, speed_table
from benchmarks.extract.subject import Subject
from benchmarks.shared.card import CardMemory, Peak, bf16_peak, watch_cards
from benchmarks.shared.measure import Limit, Spread, Table, Target, Timings
from benchmarks.shared.prompts import embedded_questions, skewed_questions

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MOST_TOKENS = 32768
# As many as the questions teach a tokenizer; the model has embeddings for many more.
_N_WORDS = 2000


@dataclass(frozen=True)
class Large:
    """A model of Qwen2's architecture, and what is extracted from it.

    Parameters
    ----------
    n_blocks, n_features, n_widest, n_heads, n_kv_heads, n_embeddings : int
        Of the model; `n_widest` is the inner size of the feed-forward parts.
    n_rows, median_tokens, longest_tokens : int
        Prompts, and how long they are.
    n_rounds : int
        Rounds of everything that is timed.
    """

    n_blocks: int
    n_features: int
    n_widest: int
    n_heads: int
    n_kv_heads: int
    n_embeddings: int
    n_rows: int
    median_tokens: int
    longest_tokens: int
    n_rounds: int

    @property
    def disk_nbytes(self) -> int:
        """Room for our store and the file of the original method, of some eight positions."""
        return 2 * 8 * 2 * self.n_rows * (self.n_blocks + 1) * self.n_features

    def load(self, device: torch.device) -> Subject:
        """Make the model on the device, and a tokenizer."""
        config = Qwen2Config(
            vocab_size=self.n_embeddings,
            hidden_size=self.n_features,
            intermediate_size=self.n_widest,
            num_hidden_layers=self.n_blocks,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            max_position_embeddings=_MOST_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.eval().requires_grad_(False)
        return Subject(model, _train_tokenizer(), self.n_blocks, self.n_features, _MOST_TOKENS, device)


def _train_tokenizer() -> Any:
    """A byte-level tokenizer of the embedded questions, with ChatML's template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=_N_WORDS,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*embedded_questions(), "user\n", "assistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=_TEMPLATE
    )


@dataclass(frozen=True)
class LargeFound:
    """What the measurement gives to a report."""

    tables: Sequence[Table]
    targets: Sequence[Target | Limit]
    facts: dict[str, Any]


def measure_large(large: Large, folder: Path, device: torch.device) -> LargeFound:
    """Race the original method, ours and the bare forward pass; compare memory with what was foretold.

    Parameters
    ----------
    large : Large
        Model and prompts.
    folder : Path
        Empty; stores are written below it.
    device : torch.device
        Where the model is made and runs.
    """
    taken, subject = watch_cards([device], lambda: large.load(device))
    questions = skewed_questions(
        subject.tokenizer, large.n_rows, median_tokens=large.median_tokens, longest_tokens=large.longest_tokens
    )
    prompts = subject.encode(questions)
    _warm_up(subject, questions, folder / "warm_up")
    tables: list[Table] = []
    targets: list[Target | Limit] = []
    batch = _watch_batches(subject, prompts, folder / "watched.zarr")
    if taken is not None and batch is not None:
        weights = CardMemory(weights_nbytes(subject.decoder), taken)
        tables.append(_memory_table(weights, batch))
        targets.append(batch_limit(batch))
    (folder / "race").mkdir()
    race = race_original(subject, questions, folder / "race", n_rounds=large.n_rounds)
    peak = bf16_peak(device)
    n_operations = operations(subject, prompts.n_tokens)
    title = (
        f"random model of {_n_parameters(subject) / 1e9:.2f}B parameters in bfloat16: {large.n_rows} prompts of "
        f"{prompts.n_tokens.min()} to {prompts.n_tokens.max()} tokens, median {np.median(prompts.n_tokens):.0f}"
    )
    tables.insert(0, _speed_table(title, race.timings, race.n_tokens, n_operations, peak))
    targets = [*original_targets("random model", race.timings, 3.5), *targets]
    facts = {
        "parameters": _n_parameters(subject),
        "parameters in matrix products": _n_multiplied(subject),
        "embeddings": large.n_embeddings,
        "attention": subject.model.config._attn_implementation,
        "stored positions": len(prompts.positions),
        "tokens of a batch, at most": make_plan(subject, prompts).max_tokens,
        "operations": f"{n_operations:.3e}",
        "peak in bfloat16, operations/s": f"{peak.per_s:.3e}, {peak.origin}",
        "random model: largest difference, of the vector's length": f"{race.difference:.1e}",
    }
    return LargeFound(tables, targets, facts)


def _warm_up(subject: Subject, questions: Sequence[str], folder: Path) -> None:
    folder.mkdir()
    race_original(subject, questions[:BATCH_ROWS], folder, n_rounds=0, n_warm_ups=1)


def _watch_batches(subject: Subject, prompts: Prompts, path: Path) -> CardMemory | None:
    """Our extraction once: what its largest batch is foretold to take of a card, and what it takes."""
    way = Way(make_spec(subject, prompts), make_plan(subject, prompts))
    states = subject.states(prompts.positions)
    lengths, layout = prompts.n_tokens, way.spec.layout
    largest = max(
        len(batch) * (int(lengths[batch].max()) - way.plan.prefix_tokens)
        for shard in range(layout.n_shards)
        for batch in way.plan.batches(lengths, layout.rows(shard))
    )
    foretold = largest * states.token_nbytes(int(lengths.max()))
    taken, _ = watch_cards([subject.device], lambda: extract_ours(states, prompts, way.spec, way.plan, path))
    shutil.rmtree(path)
    return None if taken is None else CardMemory(foretold, taken)


def operations(subject: Subject, n_tokens: Integer[np.ndarray, " sample"]) -> int:
    """Operations that the hidden states of all prompts need: no padding, no head, half of the attention's square.

    Two for each parameter of a matrix product and token; and in each block, for each pair of tokens that attention
    looks at, two for each feature of a query, and two of a value.
    """
    lengths = n_tokens.astype(np.int64)
    n_pairs = int((lengths * (lengths + 1) // 2).sum())
    return 2 * _n_multiplied(subject) * int(lengths.sum()) + 4 * subject.n_blocks * subject.n_features * n_pairs


def _n_multiplied(subject: Subject) -> int:
    return sum(module.weight.numel() for module in subject.decoder.modules() if isinstance(module, nn.Linear))


def _n_parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.model.parameters())


def _speed_table(title: str, timings: Timings, n_tokens: int, n_operations: int, peak: Peak) -> Table:
    plain = speed_table(title, timings, n_tokens, {"x original": ORIGINAL, "x bare": BARE})
    shares = [
        Spread.of([100 * n_operations / (s * peak.per_s) for s in seconds]) for seconds in timings.seconds.values()
    ]
    rows = [{**row, "% of peak": share} for row, share in zip(plain.rows, shares, strict=True)]
    return Table(f"{title}; peak in bfloat16 {peak.per_s / 1e12:.3g}e12 operations/s ({peak.origin})", rows)


def _memory_table(weights: CardMemory, batch: CardMemory) -> Table:
    rows = [{"what": "weights", **weights.row()}, {"what": "ours, beyond the weights", **batch.row()}]
    return Table("memory of the card: foretold, and its tensors'", rows)


def batch_limit(batch: CardMemory) -> Limit:
    """Batches are planned for half of the free memory: twice as much still fits."""
    return Limit("random model: measured / foretold memory of a batch", 2.0, Spread.of([batch.ratio]))
