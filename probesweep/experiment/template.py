"""The commented experiment to start from."""

from importlib.resources import files
from pathlib import Path

from activation_store.files.durable import make_folder, write_output
from probesweep.errors import RequestError

TEMPLATE = "experiment.toml"


def write_template(path: Path) -> None:
    """Write a commented experiment to start from.

    Raises
    ------
    RequestError
        The file already exists.
    """
    if path.exists():
        raise RequestError(f"{path} exists; give another name, or remove it", argument="path")
    make_folder(path.parent)
    write_output(path, [files("probesweep.experiment").joinpath(TEMPLATE).read_bytes()])
