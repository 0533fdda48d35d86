"""From questions with answers to success rates: check everything, sample attempts batch by batch, judge, write."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from activation_store.errors import InputError
from activation_store.extraction.arguments import check_template_kwargs
from activation_store.files.durable import hidden_beside, make_folder
from activation_store.prompts.prompts import PromptFormat
from activation_store.questions.dataset import Columns, listed
from activation_store.questions.formats import Wanted
from activation_store.questions.hub_address import is_on_hub
from activation_store.questions.question import Question, question_text
from probesweep.errors import RequestError, VerifierError
from probesweep.labelling.asked import as_asked
from probesweep.labelling.columns import FORMATTED_PROMPT, Attempt, check_truncated
from probesweep.labelling.engines.engine import LENGTH, STOP, Answer, Batch, Engine
from probesweep.labelling.meter import Judged, metered
from probesweep.labelling.output import ADDED, VERSION, hash_of, read_about, read_attempts, write_labelled
from probesweep.labelling.progress import JUDGING, Progress, check_same, differences
from probesweep.labelling.sampling import Sampling
from probesweep.labelling.summary import Summary
from probesweep.labelling.taking import check_labelled_path
from probesweep.labelling.verdict import Verifier, check_answers
from probesweep.labelling.verifiers import make_verifier
from probesweep.outputs import only_writer
from probesweep_errors import naming

EngineName = Literal["transformers", "vllm", "openai"]
VerifyErrors = Literal["stop", "null"]
_N_EXAMPLES = 3
_VERDICTS: Mapping[float | None, str] = {None: "not judged", 0.0: "wrong", 1.0: "right"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelling:
    """Sample answers of a model to the questions of a dataset, judge them, and write the success rates.

    Parameters
    ----------
    model : str or PreTrainedModel
        Hub id, local folder, GGUF file, or "smollm2"; with the engine ``openai``, its name on the server. A model of
        transformers in memory needs its `tokenizer`.
    dataset_path : str, Path, DataFrame, or list of them
        As of `activation_store.Extraction`.
    output_path : str or Path
        Parquet file to write: the rows of the dataset in their order, with the columns of `columns.OUTCOME_COLUMNS` and
        ``formatted_prompt``, the prompt as the model read it.
    verifier : str
        ``exact``, ``contains``, ``number``, ``choice``, ``regex:PATTERN``, ``math`` or ``python:FILE:FUNCTION``.
    question_column, answer_column : str
        Columns of the questions, and of what is right: text, a number, or a list of answers of which each is.
    engine : str
        ``transformers`` or ``vllm`` in this process, or ``openai``: a server that speaks its chat protocol.
    base_url : str, optional
        Of the server; the key is taken from OPENAI_API_KEY in the environment.
    concurrency : int
        Most requests to the server at once.
    n_samples, temperature, top_p, top_k, max_new_tokens, seed
        As of `Sampling`.
    system_prompt : str, optional
        Goes first in every prompt.
    prompt_template : str, optional
        What the user says, with ``{question}`` in it, and perhaps other columns in braces.
    use_chat_template : bool
        Render each question with the chat template; otherwise the model reads it as it is.
    chat_template_kwargs : dict, optional
        Passed to the template.
    max_length : int, optional
        Most tokens of a prompt; by default what the model takes besides `max_new_tokens`.
    truncated : str
        What an answer that was cut off counts as: ``wrong``, or ``drop``, not judged.
    verify_errors : str
        What becomes of an answer on which the verifier fails: ``stop``, or ``null``, not judged.
    max_samples : int, optional
        Use only the first N rows.
    batch_size : int, optional
        Most questions in a batch; by default what keeps the device busy and fits into its memory.
    device, dtype, trust_remote_code, tokenizer
        As of `activation_store.Extraction`.
    """

    model: Any
    dataset_path: Any
    output_path: str | Path
    verifier: str
    question_column: str = "question"
    answer_column: str = "answer"
    engine: EngineName = "transformers"
    base_url: str | None = None
    concurrency: int = 32
    n_samples: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256
    seed: int = 0
    system_prompt: str | None = None
    prompt_template: str | None = None
    use_chat_template: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    max_length: int | None = None
    truncated: str = "wrong"
    verify_errors: VerifyErrors = "stop"
    max_samples: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    tokenizer: Any = None

    def check(self) -> None:
        """Check the arguments by themselves: nothing is read.

        Raises
        ------
        RequestError, InputError
            One of them is invalid for any dataset and model.
        """
        if self.engine not in get_args(EngineName):
            raise RequestError(
                f"engine={self.engine!r} must be one of {', '.join(get_args(EngineName))}", argument="engine"
            )
        if self.verify_errors not in get_args(VerifyErrors):
            raise RequestError(
                f"verify_errors={self.verify_errors!r} must be one of {', '.join(get_args(VerifyErrors))}",
                argument="verify_errors",
            )
        if self.base_url is not None and self.engine != "openai":
            raise RequestError("base_url=... is of a server; add engine='openai'", argument="base_url")
        if self.engine == "openai":
            self._check_for_server()
        for name in ("question_column", "answer_column"):
            if getattr(self, name) in ADDED:
                raise RequestError(
                    f"{name}={getattr(self, name)!r} is a column that labels are written to; give it another name in "
                    "the dataset",
                    argument=name,
                )
        if self.batch_size is not None and self.batch_size < 1:
            raise RequestError(f"batch_size={self.batch_size} must be 1 or more", argument="batch_size")
        check_truncated(self.truncated)
        check_template_kwargs(self.chat_template_kwargs or {})
        self.sampling.check()
        given = [each for each in listed(self.dataset_path) if isinstance(each, str | Path)]
        datasets = [Path(each) for each in given if not is_on_hub(each)]
        check_labelled_path(self.output_path, datasets)
        _ = self._verifier

    def _check_for_server(self) -> None:
        if not self.use_chat_template:
            raise RequestError(
                "engine='openai': the server applies its chat template to every question; add use_chat_template=True, "
                "or run the model in this process",
                argument="use_chat_template",
            )
        given = {"max_length": None, "batch_size": None, "device": "auto", "dtype": "auto", "tokenizer": None}
        for name, default in given.items():
            if getattr(self, name) != default:
                raise RequestError(
                    f"{name}=... is for a model in this process, and engine='openai' asks a server; leave it out",
                    argument=name,
                )

    def run(self) -> Summary:
        """Write the file; goes on with an interrupted labelling, and returns at once if it is done.

        Raises
        ------
        OtherLabelsError
            The file, or the attempts that are kept until it is written, were made with other inputs.
        RequestError, InputError
            The dataset, the model or an argument cannot be used; almost always before weights are loaded.
        """
        self.check()
        path = Path(self.output_path)
        make_folder(path.parent)
        with only_writer(hidden_beside(path, "lock"), path):
            if not self._is_done(path):
                self._sample(path)
        return Summary.read(path)

    def _is_done(self, path: Path) -> bool:
        if not path.exists():
            return False
        found = read_about(path).get("fingerprint", {"taken from others": True})
        check_same(path, found, self._fingerprint, "remove it")
        # A process that was killed after it wrote the file.
        progress_of(path).unlink(missing_ok=True)
        return True

    def _sample(self, path: Path) -> None:
        replaced = [name for name in ADDED if name in self._table.column_names]
        if replaced:
            logger.warning(
                "%s has columns of another labelling (%s): the output has new ones in their place",
                self._columns.path,
                ", ".join(replaced),
            )
        with Progress.open(progress_of(path), self._fingerprint, self._judge_again) as progress:
            if len(progress.done) < len(self._columns):
                self._engine.load()
                if progress.plan is None:
                    progress.begin(self._engine.plan())
                done = progress.done
                # Batches that turned out to be too large for the device can be made smaller.
                planned = progress.plan or []
                size = self.batch_size or max(map(len, planned))
                smaller = [batch[start : start + size] for batch in planned for start in range(0, len(batch), size)]
                pending = [batch for batch in smaller if not done.issuperset(batch)]
                for batch, attempts in metered(self._judged(pending), len(self._columns), len(done)):
                    progress.add(batch, attempts)
            prompts = self._engine.prompts
            write_labelled(path, self._table, progress.attempts, prompts, self._about)
        progress_of(path).unlink()
        n_untold = 0 if prompts is None else prompts.count(None)
        if n_untold:
            logger.warning(
                "%d questions have control strings in the user's text, which are text to the model: their %s is null, "
                "as no text gives these tokens; extract from %r with use_chat_template=True",
                n_untold,
                FORMATTED_PROMPT,
                self.question_column,
            )

    def _judged(self, pending: Sequence[Batch]) -> Iterator[Judged]:
        for batch, answers in self._engine.answer(pending):
            yield (
                batch,
                [[self._judge(row, answer) for answer in of_row] for row, of_row in zip(batch, answers, strict=True)],
            )

    def _judge(self, row: int, answer: Answer) -> Attempt:
        if answer.finish_reason == LENGTH:
            # It has given no answer.
            correct = 0.0 if self.truncated == "wrong" else None
            return Attempt(answer.text, None, correct, LENGTH, answer.n_tokens)
        try:
            verdict = self._verifier.judge(answer.text, self._answers[row], self._row(row))
        except VerifierError as error:
            if self.verify_errors == "null":
                return Attempt(answer.text, None, None, answer.finish_reason, answer.n_tokens)
            raise RequestError(
                f"row {row}: {error}; mend it and run the same command again, or count such answers as not judged: "
                "verify_errors='null'",
                argument="verifier",
            ) from error
        # A user's function may say what no file can hold.
        extracted = None if verdict.extracted is None else verdict.extracted.encode(errors="replace").decode()
        return Attempt(answer.text, extracted, verdict.correct, answer.finish_reason, answer.n_tokens)

    def _judge_again(self, row: int, attempt: Attempt) -> Attempt:
        return self._judge(row, Answer(attempt.text or "", attempt.finish_reason or STOP, attempt.n_tokens))

    def take_attempts(self, labelled: Path) -> bool:
        """Take the attempts of an earlier labelling, for `run` to judge again, if only the verdicts can differ.

        Parameters
        ----------
        labelled : Path
            The file that it wrote.

        Returns
        -------
        bool
            Whether they were taken.
        """
        found = read_about(labelled).get("fingerprint")
        if found is None or not differences(found, self._fingerprint) <= JUDGING:
            return False
        Progress.write(progress_of(Path(self.output_path)), found, read_attempts(labelled))
        return True

    def stand_in(self) -> Any:
        """The file as a DataFrame, every label one half: to check what becomes of it before there are labels."""
        _ = self._fingerprint
        n_rows, prompts = len(self._columns), self._engine.prompts
        half = {"success_rate": [0.5] * n_rows, "n_samples": [2] * n_rows, "n_correct": [1] * n_rows}
        columns = {name: self._table[name] for name in self._table.column_names if name not in ADDED}
        return pa.table({**columns, **half, FORMATTED_PROMPT: prompts or [None] * n_rows}).to_pandas()

    def preview(self) -> str:
        """The first prompt, and what the verifier makes of three answers to its question.

        Raises
        ------
        RequestError, InputError
            As `run`.
        """
        self.check()
        _ = self._fingerprint
        prompts = self._engine.prompts
        known = None if prompts is None else prompts[0]
        prompt = question_text(self._asked[0]) if known is None else known
        rows = range(min(_N_EXAMPLES, len(self._columns)))
        lines = [f"{len(self._columns)} questions, {self.sampling.n_attempts} attempts each", "", "the first prompt"]
        lines += [prompt, "", f"what the verifier {self._verifier.name} makes of answers to it"]
        right = _first(self._answers[0])
        other = next(
            (_first(self._answers[row]) for row in rows if _first(self._answers[row]) != right), "I don't know"
        )
        for text in (right, f"The answer is {right}.", f"The answer is {other}."):
            verdict = self._verifier.judge(text, self._answers[0], self._row(0))
            words = _VERDICTS.get(verdict.correct, f"right to {verdict.correct:g}" if verdict.correct else "")
            lines.append(f"  {text!r}: {words} (extracted {verdict.extracted!r})")
        return "\n".join(lines)

    @property
    def sampling(self) -> Sampling:
        """How answers are sampled."""
        return Sampling(self.n_samples, self.temperature, self.top_p, self.top_k, self.max_new_tokens, self.seed)

    @cached_property
    def _verifier(self) -> Verifier:
        with naming("verifier"):
            return make_verifier(self.verifier)

    @cached_property
    def _columns(self) -> Columns:
        arguments = {self.answer_column: "answer_column", self.question_column: "question_column"}
        names = list(dict.fromkeys([self.question_column, self.answer_column]))
        wanted = Wanted(names, others=True, max_rows=self.max_samples, arguments=arguments)
        columns = Columns.read(self.dataset_path, wanted)
        if not len(columns):
            raise RequestError(f"{columns.path} has no rows", argument="dataset_path")
        return columns

    @cached_property
    def _table(self) -> Any:
        """All columns of the dataset, typed."""
        columns = self._columns
        try:
            tables = [part.rows.typed_table() for part in self._columns.parts]
            table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
            # What parquet cannot hold is said before the model runs.
            pq.write_table(table.slice(0, 0), pa.BufferOutputStream())
            return table
        except InputError as error:
            # It advises other formats, and here there is one.
            reason = str(error).partition("; write ")[0]
        except pa.ArrowException as error:
            reason = f"{columns.path}: {error}"
        raise RequestError(
            f"{reason}; labels are written as parquet, so write each column in one way", argument="dataset_path"
        )

    @cached_property
    def _answers(self) -> list[Any]:
        return self._columns.numbers(self.answer_column)

    @cached_property
    def _asked(self) -> list[Question]:
        with naming("question_column"):
            questions = self._columns.questions(self.question_column)
        return as_asked(
            questions,
            system_prompt=self.system_prompt,
            prompt_template=self.prompt_template,
            columns=self._columns.names,
            values=self._columns.numbers,
        )

    def _row(self, row: int) -> Mapping[str, Any]:
        """A row as a user's verifier sees it."""
        return self._table.slice(row, 1).to_pylist()[0]

    @cached_property
    def _engine(self) -> Engine:
        kwargs = self.chat_template_kwargs or {}
        if self.engine == "openai":
            from probesweep.labelling.engines.openai import OPENAI_URL, ServerEngine

            url = self.base_url or OPENAI_URL
            server = ServerEngine(self.model, self._asked, self.sampling, url, self.concurrency, kwargs)
            server.check()
            return server
        from probesweep.labelling.engines.prompted import PromptedModel

        prompted = PromptedModel.open(
            self.model,
            self._asked,
            PromptFormat(self.use_chat_template, kwargs, max_length=self.max_length),
            max_new_tokens=self.max_new_tokens,
            tokenizer=self.tokenizer,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )
        if self.engine == "vllm":
            from probesweep.labelling.engines.vllm import VllmEngine

            started = VllmEngine(prompted, self.sampling, self.batch_size)
            started.check()
            return started
        from probesweep.labelling.engines.local import LocalEngine

        return LocalEngine(prompted, self.sampling, self.batch_size)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What decides the file."""
        check_answers(self._verifier, self._answers, f"{self._columns.path}: column {self.answer_column!r}")
        return {
            **self._engine.identity,
            "dataset": hash_of(self._table),
            **({"dataset_revisions": self._columns.revisions} if self._columns.revisions else {}),
            "n_questions": len(self._columns),
            "question_column": self.question_column,
            "answer_column": self.answer_column,
            "system_prompt": self.system_prompt,
            "prompt_template": self.prompt_template,
            "max_length": self.max_length,
            **{**asdict(self.sampling), "n_samples": self.sampling.n_attempts},
            "verifier": self._verifier.name,
            "truncated": self.truncated,
            "verify_errors": self.verify_errors,
        }

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "fingerprint": self._fingerprint,
            "dataset_path": self._columns.path,
            "base_url": self.base_url,
            "versions": dict(self._engine.versions),
        }


def progress_of(path: Path) -> Path:
    """Where the attempts are kept until the file is written."""
    return path.with_name(f"{path.name}.progress")


def _first(answer: Any) -> str:
    return str(next(iter(answer), "") if isinstance(answer, list | tuple) else answer)
