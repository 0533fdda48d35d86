"""Figures as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpu_probes.report import vega
from gpu_probes.report.figures import Figure
from gpu_probes.report.theme import picture_spec
from gpu_probes.results.files import commit_file

_DRAWN: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "png": vega.png,
    "svg": lambda spec: vega.svg(spec).encode(),
    "pdf": vega.pdf,
}


def save_pictures(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG, SVG and PDF into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for figure in figures:
        spec = picture_spec(figure.chart)
        for kind, draw in _DRAWN.items():
            path = folder / f"{figure.name}.{kind}"
            commit_file(path, draw(spec))
            paths.append(path)
    return paths
