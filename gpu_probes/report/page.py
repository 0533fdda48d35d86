"""Assemble a page: text, figures, tables, style and script in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from gpu_probes.display.wording import one_line
from gpu_probes.report import tables, vega
from gpu_probes.report.figures import Absent, Figure
from gpu_probes.report.load import SavedFiles
from gpu_probes.report.sentences import headlines, three_sentences
from gpu_probes.report.theme import page_spec


def render(results: SavedFiles, made: Sequence[Figure | Absent], prompts: Mapping[str, Sequence[str]] | None) -> str:
    """HTML of a page; everything from files or prompts is escaped.

    Parameters
    ----------
    made : sequence of Figure or Absent
        In the order of the page.
    prompts : mapping of "train" and "test" to texts, optional
    """
    figures = [one for one in made if isinstance(one, Figure)]
    scripts = [_script(vega.bundle()), _script(_packaged("report.js"))]
    content: dict[str, Any] = {
        "title": f"Probes of {one_line(results.label)}",
        "sentences": three_sentences(results),
        "headlines": headlines(results),
        "figures": figures,
        "specs": {figure.name: page_spec(figure.chart) for figure in figures},
        "absent": _absent(results, made),
        "folds": tables.nested_folds(results),
        "errors": tables.largest_errors(results, prompts),
        "has_prompts": prompts is not None,
        "classes": tables.by_class(results),
        "scores": tables.all_scores(results),
        "methods": results.methods,
        "provenance": tables.provenance(results),
        "policy": _policy(scripts),
        "scripts": scripts,
        "style": _packaged("report.css"),
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_packaged("template.html")).render(content)


def _absent(results: SavedFiles, made: Sequence[Figure | Absent]) -> list[tuple[str, str]]:
    """What readers might miss, and why."""
    missing = [(one.title, one.reason) for one in made if isinstance(one, Absent) and one.expected]
    if results.best is None:
        missing += [(title, results.why_no_best) for title in ("Prompts with the largest errors", "All scores")]
    elif tables.all_scores(results) is None:
        missing.append(("All scores", results.why_missing("scores")))
    return missing


def _policy(scripts: Sequence[str]) -> str:
    """Content Security Policy: our two scripts by their hashes, and nothing else."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script(text: str) -> str:
    """A script made safe to embed: nothing in it ends the element or opens a comment."""
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _packaged(name: str) -> str:
    return resources.files("gpu_probes.report").joinpath(name).read_text(encoding="utf-8")
