"""Figures as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpu_probes.report import vega
from gpu_probes.report.figures import Figure
from gpu_probes.report.theme import picture_spec
from gpu_probes.results.files import commit_file


def save_pictures(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for figure in figures:
        spec = picture_spec(figure.chart)
        svg, png = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
        commit_file(svg, vega.svg(spec).encode())
        commit_file(png, vega.png(spec))
        paths += [svg, png]
    return paths
