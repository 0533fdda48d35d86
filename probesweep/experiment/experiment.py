"""A complete experiment from one TOML file: label and extract the training and test rows, train, report."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from activation_store import ActivationStore, Extraction, FingerprintMismatchError
from activation_store.extraction.arguments import check_disk, check_path
from activation_store.files.durable import rename
from activation_store.files.storage import Location, is_address, locate
from activation_store.questions.hub import HubDataset
from activation_store.questions.hub_address import is_on_hub
from activation_store.store.documents import is_store
from gpu_probes.results.folder import PICTURES, hash_file, hash_run
from probesweep.done import Memory, recall, remember
from probesweep.errors import OtherLabelsError, RequestError
from probesweep.experiment.file import checked_settings, find_line
from probesweep.experiment.mirror import Mirror, folder_beside
from probesweep.experiment.template import TEMPLATE
from probesweep.labelling.columns import FORMATTED_PROMPT
from probesweep.labelling.labelling import Labelling, progress_of
from probesweep.labelling.output import write_rated
from probesweep.outputs import check_folder, writing
from probesweep.reporting import report_on
from probesweep.seeds import SeedRuns
from probesweep.terminal.flags import KEYS
from probesweep.tracking.track import check_installed, track
from probesweep.training import Training
from probesweep_errors import ProbesweepError

_STAGES = "stages.json"
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes
    ----------
    extractions : dict of Extraction
        Of every split.
    changed : list of str
        Splits of which something was edited, or that were never looked at.
    pending : list of str
        Those for which the model has to run.
    stores : dict of ActivationStore
        By split; planned ones where the model has to run.
    trainings : list of Training
        One, or one for each seed.
    """

    extractions: Mapping[Split, Extraction]
    changed: Sequence[Split]
    pending: Sequence[Split]
    stores: Mapping[Split, ActivationStore]
    trainings: Sequence[Training]


@dataclass(frozen=True)
class Experiment:
    """An experiment, read from its file and checked.

    Open with `Experiment.load`. Paths in the file are relative to its folder.
    """

    path: Path
    text: str
    settings: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read an experiment.

        Raises
        ------
        RequestError
            The file is missing, is not TOML, or has an invalid key or value; names key, value and line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            document = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            name = path / TEMPLATE if path.is_dir() else path
            raise RequestError(f"{path}: {reason}; write one with probesweep run --init {name}") from error
        except tomllib.TOMLDecodeError as error:
            raise RequestError(
                f"{path} is not TOML: {error}; put strings in quotes, and write true or false"
            ) from error
        experiment = cls(path, text, checked_settings(path, text, document))
        experiment.check()
        return experiment

    def check(self) -> None:
        """Check the values by themselves: no other file is read.

        Raises
        ------
        ProbesweepError
            As `activation_store.Extraction.check` and `probesweep.training.Training.check`; names the line at fault.
        """
        with self._naming_lines():
            for keys in self.settings.values():
                for name in keys.keys() & set(_FILES):
                    for path in _listed(keys[name]):
                        check_path(name, path)
        for split in self.splits:
            with self._naming_lines(split=split):
                self.extraction(split).check()
            with self._naming_lines(split=split, first="label"):
                labelling = self.labelling(split)
                if labelling is not None:
                    labelling.check()
        with self._naming_lines():
            # Places of an earlier run are in a file, which a bucket may have a newer version of.
            (self.seed_runs({}) or self.training({})).check()

    def run(self, say: Callable[[str], None]) -> dict[str, Path]:
        """Run the unfinished stages: label and extract the training and test rows, train, report, track.

        Parameters
        ----------
        say : callable
            Called with a line about what is done next.

        Returns
        -------
        dict of Path
            The result folder of every label; with several seeds those of `seed_runs`, by label and seed.

        Raises
        ------
        ProbesweepError
            As `activation_store.Extraction.run` and `probesweep.training.Training.run`; names the line at fault.
        """
        with self._naming_lines(), self._only_writer():
            if self._mirror:
                self._mirror.fetch()
            if self.settings["report"]["track"]:
                check_installed(self.settings["report"]["track"])
            self.pin()
            self._label(say)
            plan = self.plan()
            for split, extraction in plan.extractions.items():
                if split in plan.pending:
                    self._extract(split, extraction, say)
                else:
                    if split in plan.changed:
                        self._remember_extracted(split, extraction, plan.stores[split])
                    say(f"extract {split}: already done")
            folders = self._train(say)
            self._send()
            for folder in folders.values():
                self._report(folder, say)
            self._send()
            if self._mirror:
                say(f"results: {self._place}, and a copy in {self._mirror.folder}")
        return folders

    def labelling(self, split: Split) -> Labelling | None:
        """The labelling of the training or the test rows; None if the datasets have their labels."""
        given, data, model = (self.settings[name] for name in ("label", "data", "model"))
        if not given:
            return None
        if data["truncate"]:
            raise RequestError(
                "truncate=True: questions whose answers are sampled are not cut; leave it out, or drop long ones",
                argument="truncate",
            )
        here = given["engine"] != "openai"
        if not here and self._asks_more:
            raise RequestError(
                "engine='openai': only the server knows the prompts that system_prompt and prompt_template make, so "
                "their hidden states cannot be extracted; put both into the questions, as conversations",
                argument="engine",
            )
        kind, _, function = given["verifier"].partition(":")
        if kind == "python":
            file, _, name = function.rpartition(":")
            function = f"{self._path(file)}:{name}"
        return Labelling(
            **{**given, "verifier": f"{kind}:{function}" if function else kind},
            model=self._model if here else model["model"],
            dataset_path=self._given_datasets(split),
            output_path=self._labelled(split),
            **({"device": self.settings[""]["device"], "max_length": data["max_length"]} if here else {}),
            **({name: model[name] for name in ("dtype", "trust_remote_code")} if here else {}),
            **{
                name: data[name]
                for name in ("question_column", "use_chat_template", "chat_template_kwargs", "max_samples")
            },
        )

    def extraction(self, split: Split) -> Extraction:
        """The extraction of the training or the test rows."""
        given = {**self.settings["model"], **self.settings["data"], **self._prompts}
        for name in ("train_dataset", "test_dataset", "test_rows", "test_fraction"):
            del given[name]
        labels = [given["label_column"]] if isinstance(given["label_column"], str) else given["label_column"]
        weights, groups = self.settings["probe"]["weight_column"], self.settings["statistics"]["groups"]
        # Only the training rows are weighted.
        kept = [*labels, *([weights] if weights and split == "train" else [])]
        columns = [given["group_column"]] if isinstance(given["group_column"], str) else given["group_column"]
        beside = [*columns, *([groups] if groups and groups not in kept else [])]
        changed: dict[str, Any] = {
            "model": self._model,
            "dataset_path": self._datasets(split),
            "output_path": self._store(split),
            "label_column": kept,
            "group_column": beside,
            "device": self.settings[""]["device"],
            **self.settings["machines"],
        }
        return Extraction(**{**given, **changed})

    def training(self, places: Mapping[str, Sequence[int]] | None = None) -> Training:
        """The training on the stores, with labels from the datasets as they are now.

        Parameters
        ----------
        places : mapping of sequence of int, optional
            Layers and positions that the file asks for, if they are known; a store may have more.
        """
        data, probe = self.settings["data"], self.settings["probe"]
        has_test = "test" in self.splits
        asked: dict[str, Any] = {
            **probe,
            **(self._stages.get("train", {}).get("places", {}) if places is None else places),
        }
        if probe["positions"] != "all":
            asked["positions"] = probe["positions"]
        return Training(
            train_activations=self._store("train"),
            test_activations=self._store("test") if has_test else None,
            test_rows=data["test_rows"],
            test_fraction=data["test_fraction"],
            output_dir=self._output_dir / "probes",
            label_column=data["label_column"],
            labels=self._datasets("train"),
            test_labels=self._datasets("test") if has_test else None,
            question_column=self._prompts["question_column"],
            max_samples=data["max_samples"],
            device=self.settings[""]["device"],
            **asked,
            **{name: value for name, value in self.settings["statistics"].items() if name != "seeds"},
            **self.settings["machines"],
        )

    @property
    def splits(self) -> tuple[Split, ...]:
        """Which stores there are: the test rows may be a part of the others, or absent."""
        return SPLITS if self.settings["data"]["test_dataset"] is not None else SPLITS[:1]

    @property
    def _model(self) -> str:
        path = self._path(self.settings["model"]["model"])
        return str(path) if path.exists() else self.settings["model"]["model"]

    @property
    def _prompts(self) -> dict[str, Any]:
        """Where the prompts are: those that were labelled, if they are more than the questions."""
        data = self.settings["data"]
        if self._asks_more:
            return {"question_column": FORMATTED_PROMPT, "use_chat_template": False, "chat_template_kwargs": None}
        return {name: data[name] for name in ("question_column", "use_chat_template", "chat_template_kwargs")}

    @property
    def _asks_more(self) -> bool:
        """Whether labels are those of more than the questions."""
        given = self.settings["label"]
        return bool(given) and (given["system_prompt"] is not None or given["prompt_template"] is not None)

    def _datasets(self, split: Split) -> Path | str | list[Path | str]:
        """What is extracted."""
        if not self.settings["label"]:
            return self._given_datasets(split)
        rated = self._labelled(split).with_suffix(".rated.parquet")
        return rated if rated.exists() else self._labelled(split)

    def _labelled(self, split: Split) -> Path:
        return self._output_dir / f"{split}.parquet"

    def _given_datasets(self, split: Split) -> Path | str | list[Path | str]:
        given = self.settings["data"][f"{split}_dataset"]
        return self._dataset(given) if isinstance(given, str) else [self._dataset(each) for each in given]

    def _dataset(self, text: str) -> Path | str:
        """A path, or an address on the hub: with its commit, once that was asked for."""
        return self._pinned.get(text, text) if is_on_hub(text, self.path.parent) else self._path(text)

    @cached_property
    def _pinned(self) -> dict[str, str]:
        """Addresses on the hub, with the commits that they mean."""
        return {}

    def pin(self) -> None:
        """Ask the hub what addresses mean now: all stages read the same commits, also if they take hours."""
        self._pinned.clear()
        self._pin()

    def _pin(self) -> None:
        """Ask it for those that are not known."""
        for split in self.splits:
            for text in _listed(self.settings["data"][f"{split}_dataset"]):
                if is_on_hub(text, self.path.parent) and text not in self._pinned:
                    with self._naming_lines(f"{split}_dataset", split=split):
                        self._pinned[text] = HubDataset.find(text).pinned

    def seed_runs(self, places: Mapping[str, Sequence[int]] | None = None) -> SeedRuns | None:
        """The training with each of several seeds; None if the file gives one. Parameters as of `training`."""
        seeds = self.settings["statistics"]["seeds"]
        return None if seeds is None else SeedRuns(self.training(places), seeds)

    def trainings(self, places: Mapping[str, Sequence[int]] | None = None) -> list[Training]:
        """The training, or that with each seed. Parameters as of `training`."""
        runs = self.seed_runs(places)
        return [self.training(places)] if runs is None else list(runs.trainings.values())

    @contextmanager
    def _only_writer(self) -> Generator[None]:
        check_folder(self._output_dir, "output_dir")
        with writing(self._output_dir), self._mirror.only_writer() if self._mirror else nullcontext():
            yield

    @property
    def _place(self) -> Location:
        """Where the file says that everything goes."""
        given = self.settings[""]["output_dir"]
        return locate(given) if is_address(given) else self._path(given)

    @cached_property
    def _mirror(self) -> Mirror | None:
        """Of results in an object store."""
        return None if isinstance(self._place, Path) else Mirror(self._place, self._output_dir)

    def _send(self) -> None:
        if self._mirror:
            self._mirror.send()

    @property
    def _output_dir(self) -> Path:
        """Where results are on this machine."""
        return self._place if isinstance(self._place, Path) else folder_beside(self.path, self._place)

    def _store(self, split: Split) -> Location:
        place = self._place
        return place / f"{split}.zarr" if isinstance(place, Path) else f"{place}/{split}.zarr"

    def _path(self, text: str) -> Path:
        return self.path.parent / Path(text).expanduser()

    def plan(self) -> Plan:
        """Find which stores the model has to run for; check the rows of every stage if something was edited.

        The cheapest checks come first, before any weights are loaded; nothing is written.
        """
        self._pin()
        extractions: dict[Split, Extraction] = {split: self.extraction(split) for split in self.splits}
        changed: list[Split] = [split for split in self.splits if not self._is_known(split, extractions[split])]
        if changed:
            check_folder(self._output_dir, "output_dir")
        for split in changed:
            with self._naming_lines(f"{split}_dataset", split=split):
                _ = extractions[split].dataset
        stores: dict[Split, ActivationStore] = {}
        pending: list[Split] = []
        for split, extraction in extractions.items():
            with self._naming_lines("model", f"{split}_dataset", split=split):
                stored = finished_store(self._store(split))
                if stored is None or (split in changed and not extraction.is_covered_by(stored)):
                    pending.append(split)
                    stores[split] = extraction.plan()
                else:
                    stores[split] = stored
        if changed:
            with self._naming_lines("train_dataset", "test_dataset"):
                trainings = self.trainings(_places(extractions[changed[0]]))
                for training in trainings:
                    training.check_rows(stores["train"], stores.get("test"))
            check_disk(self._store("train"), sum(extractions[split].missing_nbytes() for split in pending))
        else:
            trainings = self.trainings()
        return Plan(extractions, changed, pending, stores, trainings)

    def _label(self, say: Callable[[str], None]) -> None:
        """Sample and verify the answers of every split, unless that is done."""
        for split in self.splits:
            labelling = self.labelling(split)
            if labelling is None:
                continue
            if self.is_labelled(split, labelling):
                say(f"label {split}: already done")
                continue
            with self._naming_lines(f"{split}_dataset", split=split, first="label"):
                self.check_unlabelled(split, labelling)
                self._label_split(split, labelling, say)

    def check_unlabelled(self, split: Split, labelling: Labelling) -> None:
        """Check that what will be labelled can be extracted, before anything is sampled."""
        replace(self.extraction(split), dataset_path=labelling.stand_in()).plan()

    def _label_split(self, split: Split, labelling: Labelling, say: Callable[[str], None]) -> None:
        target = self._labelled(split)
        say(f"label {split}: {', '.join(map(str, _listed(labelling.dataset_path)))} -> {target}")
        try:
            summary = labelling.run()
        except OtherLabelsError as error:
            kept = {path: _set_aside(path) for path in (target, progress_of(target)) if path.exists()}
            say(f"{error}: kept as {', '.join(path.name for path in kept.values())}; delete it if not needed")
            if target in kept and labelling.take_attempts(kept[target]):
                say(f"label {split}: nothing is sampled; the attempts are judged again")
            summary = labelling.run()
        say(str(summary))
        rated = write_rated(target)
        if rated != target:
            say(f"{summary.n_without_rate} questions without a rate are left out: {rated}")
        self._remember(f"label {split}", {"request": _identity_of_labels(labelling), "content": hash_file(target)})

    def is_labelled(self, split: Split, labelling: Labelling) -> bool:
        """Whether nothing was edited since the labels were made."""
        done, path = self._stages.get(f"label {split}", {}), self._labelled(split)
        known = path.exists() and done.get("content") == hash_file(path)
        return known and done.get("request") == _identity_of_labels(labelling)

    def _is_known(self, split: Split, extraction: Extraction) -> bool:
        """Whether nothing was edited since the store was found to be what is asked for."""
        done, stored = self._stages.get(split, {}), finished_store(self._store(split))
        known = stored is not None and done.get("content") == stored.journal_hash
        return known and done.get("request") == _identity(extraction)

    def _extract(self, split: Split, extraction: Extraction, say: Callable[[str], None]) -> None:
        target = self._store(split)
        say(f"extract {split}: {', '.join(map(str, _listed(self._datasets(split))))} -> {target}")
        try:
            # Labels come from the dataset, so that it does not matter which ones the store has.
            store = extraction.run(keep_labels=True)
        except FingerprintMismatchError as error:
            if not isinstance(target, Path):
                # Nothing is renamed there, and nothing is deleted.
                raise
            kept = _set_aside(target).name
            say(f"{target} was made from other inputs ({error.differences}): kept as {kept}; delete it if not needed")
            store = extraction.run()
        self._remember_extracted(split, extraction, store)

    def _remember_extracted(self, split: Split, extraction: Extraction, store: ActivationStore) -> None:
        known = {"request": _identity(extraction), "content": store.journal_hash, "places": _places(extraction)}
        self._remember(split, known)

    def _train(self, say: Callable[[str], None]) -> dict[str, Path]:
        folders: dict[str, Path] = {}
        for training in self.trainings():
            training.check_contents(*(self._stages[split]["content"] for split in self.splits))
            say(f"train: {'already done' if training.is_finished() else training.output_dir}")
            folders = training.run()
        runs = self.seed_runs()
        if runs is None:
            return folders
        by_seed = runs.run()
        return {f"{label}, seed {seed}": one for label, of in by_seed.items() for seed, one in of.items()}

    def _report(self, folder: Path, say: Callable[[str], None]) -> None:
        given = self.settings["report"]
        pictures = folder / PICTURES if given["figures"] else None
        wanted = {"probesweep": version("probesweep"), "results": hash_run(folder), "figures": given["figures"]}
        stage = f"report {folder.relative_to(self._output_dir)}"
        done = self._stages.get(stage, {})
        made = done.get("made", {})
        if made and done == {**wanted, "made": made} and made == _hashes_of(folder, made):
            say("report: already done")
        else:
            page = report_on(folder, figures=pictures)
            say(f"report: {page}")
            drawn = [page, *(pictures.iterdir() if pictures else [])]
            self._remember(
                stage, {**wanted, "made": _hashes_of(folder, [str(path.relative_to(folder)) for path in drawn])}
            )
        sent = given["track"] and track(given["track"], folder)
        if sent:
            say(f"track: {sent}")

    @cached_property
    def _stages(self) -> Memory:
        """Finished stages by name."""
        return recall(self._output_dir / _STAGES)

    def _remember(self, stage: str, request: dict[str, Any]) -> None:
        self._stages[stage] = request
        remember(self._output_dir / _STAGES, self._stages)

    @contextmanager
    def _naming_lines(self, *otherwise: str, split: Split | None = None, first: str = "") -> Generator[None]:
        """Add the line of the key at fault to an error.

        Parameters
        ----------
        *otherwise : str
            Keys to name if the error names no argument, or one that the file leaves out.
        split : str, optional
            Whose extraction it is.
        first : str
            Section in which a key is looked for first; others may have one of the same name.
        """
        try:
            yield
        except ProbesweepError as error:
            if str(self.path) in str(error):
                raise
            # What is no ValueError is not about what the file says: another process, a damaged store.
            keys = otherwise if isinstance(error, ValueError) else ()
            places = self._places(self._key_of(error.argument or "", split), first) or [
                place for key in keys for place in self._places(key, first)
            ]
            if not places:
                raise
            raise type(error)(f"{error} ({', '.join(places)})", argument=error.argument) from error

    def _key_of(self, argument: str, split: Split | None) -> str:
        """The key behind an argument, as it stands in the file or with the names of a table in it."""
        name, _, inner = argument.partition(".")
        if name in ("label_column", "group_column") and inner:
            # Extractions keep these columns, too.
            other, section = ("weight_column", "probe") if name == "label_column" else ("groups", "statistics")
            given = self.settings["data"][name]
            named = [given] if isinstance(given, str) else given
            return other if inner not in named and self.settings[section][other] == inner else name
        if name == "dataset_path" and split is not None:
            return f"{split}_dataset"
        return KEYS.get(name, argument)

    def _places(self, key: str, first: str = "") -> list[str]:
        """Where the file has a key, or what it can say of it."""
        # The stage that makes labels has keys of its own with the names of others.
        ordered = sorted(self.settings.items(), key=lambda item: (item[0] != first, item[0] == "label"))
        for section, keys in ordered:
            steps = key.split(".")
            while steps and steps[0] in keys:
                line = find_line(self.text, section, *steps)
                if line:
                    return [f"{'.'.join(steps)} in line {line} of {self.path}"]
                steps.pop()
        return []


def _identity_of_labels(labelling: Labelling) -> dict[str, Any]:
    """What decides whether labels are up to date, without loading the model."""
    kind, _, file = labelling.verifier.partition(":")
    request = {field.name: getattr(labelling, field.name) for field in fields(labelling)}
    for name in ("device", "batch_size", "output_path", "base_url", "concurrency", "tokenizer"):
        del request[name]
    datasets = _listed(labelling.dataset_path)
    return {
        "probesweep": version("probesweep"),
        **request,
        "dataset_path": list(map(str, datasets)),
        "dataset": [_hashes(path) for path in datasets if isinstance(path, Path)],
        "model_files": _hashes(Path(labelling.model)),
        "verifier_file": _hashes(Path(file.rpartition(":")[0])) if kind == "python" else {},
    }


def _identity(extraction: Extraction) -> dict[str, Any]:
    """What decides whether an extraction is up to date, without loading the model."""
    request = {field.name: getattr(extraction, field.name) for field in fields(extraction)}
    for name in ("device", "batch_size", "output_path", "repair", "workers", "ray"):
        del request[name]
    datasets, model = _listed(extraction.dataset_path), Path(extraction.model)
    return {
        "probesweep": version("probesweep"),
        **request,
        "dataset_path": [str(path) for path in datasets],
        # An address on the hub has its commit.
        "dataset": [_hashes(path) for path in datasets if isinstance(path, Path)],
        "model_files": _hashes(model),
    }


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of all files in a folder."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in found if file.is_file()]
    return {str(file): hash_file(file) for file in tqdm(files, unit="file", desc="hashes", delay=2)}


def _hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """SHA-256 of files in a folder by name; None for missing ones."""
    return {name: hash_file(folder / name) if (folder / name).is_file() else None for name in names}


def _places(extraction: Extraction) -> dict[str, Sequence[int]]:
    layers, positions = extraction.places
    return {"layers": list(layers), "positions": list(positions)}


def _listed(given: Any) -> list[Any]:
    """One path or several, or none."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def finished_store(path: Location) -> ActivationStore | None:
    """The store, if there is one and it is complete."""
    if not is_store(path):
        return None
    store = ActivationStore.open(path)
    return store if store.n_committed == len(store) else None


def _set_aside(path: Path) -> Path:
    """Rename a store made from other inputs: hours of work are not deleted."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.stem}.{n}{path.suffix}").exists())
    target = path.with_name(f"{path.stem}.{number}{path.suffix}")
    rename(path, target)
    return target


# Keys that name a file or a folder.
_FILES = ("output_dir", "model", "train_dataset", "test_dataset")
