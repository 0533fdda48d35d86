"""What is compared: the original scripts' method, ours, and the forward pass alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from activation_store.capture.batches import BatchPlan, token_budget, useful_prefix
from activation_store.capture.footprint import enough_tokens, free_nbytes, token_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.prefix import SharedPrefix
from activation_store.extraction.fill import fill
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import COORDINATES, StoreSpec
from activation_store.prompts.prompts import Prompts
from activation_store.prompts.template import render
from activation_store.store.health import examine
from activation_store.store.reader import ActivationStore
from activation_store.store.writer import StoreWriter
from benchmarks.extract.subject import Subject

BATCH_ROWS = 16
_ORIGINAL_MAX_LENGTH = 512


def extract_original(subject: Subject, questions: Sequence[str], n_positions: int, path: Path) -> None:
    """Extract as the original scripts did.

    Fixed batches in dataset order, padded as the tokenizer does by itself, through the whole model with
    ``output_hidden_states``; what is wanted is picked out of all hidden states, kept in a list, and saved at the end.
    """
    tokenizer: Any = subject.tokenizer
    texts = [render(tokenizer, question, {}) for question in questions]
    kept: list[Tensor] = []
    for start in range(0, len(texts), BATCH_ROWS):
        inputs = tokenizer(
            texts[start : start + BATCH_ROWS],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=_ORIGINAL_MAX_LENGTH,
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(subject.device)
        with torch.no_grad():
            hidden_states = subject.model(**inputs, output_hidden_states=True).hidden_states
        wanted = last_tokens(inputs["attention_mask"], n_positions)
        rows = torch.arange(len(wanted), device=wanted.device)[:, None]
        kept.append(torch.stack([hidden[rows, wanted] for hidden in hidden_states], dim=1).cpu())
    activations = torch.cat(kept)
    torch.save(
        {
            "activations": activations,
            "labels": torch.zeros(len(texts)),
            "layer_indices": list(range(activations.shape[1])),
            "positions": list(range(-n_positions, 0)),
            "n_eoi_tokens": n_positions,
            "d_model": activations.shape[3],
            "model_name": "",
        },
        path,
    )


def last_tokens(mask: Integer[Tensor, "row token"], n_positions: int) -> Integer[Tensor, "row position"]:
    """Places of the last real tokens of every row, whichever side is padded."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return last[:, None] + torch.arange(1 - n_positions, 1, device=mask.device)


def make_spec(
    subject: Subject, prompts: Prompts, *, layers: str = "all", shard_samples: int | None = None
) -> StoreSpec:
    """Describe the store as `Extraction` does."""
    n_samples, indices = len(prompts.n_tokens), subject.layers(layers)
    sample_nbytes = len(indices) * len(prompts.positions) * subject.n_features * subject.dtype.itemsize
    return StoreSpec(
        n_samples=n_samples,
        layers=indices,
        positions=prompts.positions,
        n_features=subject.n_features,
        dtype=str(subject.dtype).removeprefix("torch."),
        shard_samples=shard_samples or balanced_shard_samples(n_samples, sample_nbytes),
        coordinates=COORDINATES,
        label_columns=(),
        fingerprint={},
        provenance={},
    )


def make_plan(subject: Subject, prompts: Prompts, *, reuse_prefix: bool = True) -> BatchPlan:
    """Plan batches as `Extraction` does."""
    longest = int(prompts.n_tokens.max())
    per_token = token_nbytes(subject.decoder, subject.n_features, longest)
    max_tokens = token_budget(enough_tokens(subject.device), free_nbytes(subject.device), per_token)
    n_shared = useful_prefix(prompts.token_ids, prompts.starts, len(prompts.positions))
    return BatchPlan(max_tokens, None, n_shared if reuse_prefix else 0)


def extract_ours(states: HiddenStates, prompts: Prompts, spec: StoreSpec, plan: BatchPlan, path: Path) -> None:
    """Extract as this package does, from the tokens to the finished store; the run of the prefix included."""
    token_ids = prompts.tail_ids()
    beside = {
        "n_tokens": prompts.n_tokens.astype(np.int32),
        "token_id": token_ids,
        "token": token_ids.astype(str).astype(object),
        "prompt_hash": prompts.text_hash,
        "question": prompts.text_hash.astype(str).astype(object),
    }
    states.use_prefix(prompts.row(0)[: plan.prefix_tokens])
    with StoreWriter.create(path, spec, beside) as writer:
        fill(writer, states, prompts, plan)
        writer.finish(examine(ActivationStore.open(path)))


def run_bare(
    subject: Subject, prompts: Prompts, spec: StoreSpec, plan: BatchPlan
) -> Iterator[tuple[Integer[np.ndarray, " row"], Float[Tensor, "row token feature"]]]:
    """Run the decoder over the batches of a store's plan, and do nothing with what it returns.

    Yields
    ------
    tuple
        Samples of a batch, and what the decoder returned for them: the last layer at the tokens behind the prefix.
    """
    skipped = plan.prefix_tokens
    prefix = SharedPrefix.of(subject.decoder, prompts.row(0)[:skipped], subject.device) if skipped else None
    arguments = {"past_key_values": prefix.cache, "use_cache": True} if prefix else {"use_cache": False}
    for shard in range(spec.layout.n_shards):
        for batch in plan.batches(prompts.n_tokens, spec.layout.rows(shard)):
            token_ids = np.zeros((len(batch), prompts.n_tokens[batch].max() - skipped), dtype=np.int64)
            for place, row in enumerate(batch.tolist()):
                own = prompts.row(row)[skipped:]
                token_ids[place, : len(own)] = own
            with torch.inference_mode():
                out = subject.decoder(input_ids=torch.from_numpy(token_ids).to(subject.device), **arguments)
            yield batch, out.last_hidden_state


@torch.inference_mode()
def run_plainly(subject: Subject, prompts: Prompts) -> Float[np.ndarray, "row layer position feature"]:
    """All hidden states at the last tokens of every prompt, run alone: what the others must agree with."""
    blocks: list[np.ndarray] = []
    for sample in range(len(prompts.n_tokens)):
        token_ids = torch.from_numpy(prompts.row(sample).astype(np.int64))[None].to(subject.device)
        hidden_states = subject.decoder(input_ids=token_ids, output_hidden_states=True).hidden_states
        wanted = [hidden[:, -len(prompts.positions) :] for hidden in hidden_states]
        blocks.append(torch.stack(wanted, dim=1).cpu().numpy())
    return np.concatenate(blocks)
