"""The page of a result folder: what it says, and that texts of strangers stay texts."""

import base64
import hashlib
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from gpu_probes import ProbeError, SweepResult
from gpu_probes.display.charts import Series
from gpu_probes.display.notebook import CellPlots
from gpu_probes.display.wording import visible
from gpu_probes.report import SavedResults, curves, write_report
from gpu_probes.report.figures import FIGURES
from gpu_probes.report.page import render
from gpu_probes.report.predictions import MOST_POINTS, thinned
from tests.helpers.result_folders import ATTACKS, LAYERS, N_TEST, N_TRAIN, POSITIONS, sign, write_results

REGRESSION = ["heatmap", "layers", "predictions", "comparison", "permutations", "alphas", "learning_curve"]
CLASSES = ["heatmap", "layers", "roc", "reliability", "comparison", "alphas", "learning_curve"]


class Page(HTMLParser):
    """What a browser would find in a page, as far as tests ask."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> list[str]:
        return [str(attrs["id"])[2:] for tag, attrs in self.tags if tag == "figure"]

    def spec(self, name: str) -> dict[str, Any]:
        found = next(text for attrs, text in self.scripts if attrs.get("id") == f"s-{name}")

        def refuse(token: str) -> None:
            raise AssertionError(token)

        return json.loads(found, parse_constant=refuse)


def page_of(folder: Path, **options: Any) -> Page:
    return Page(write_report(folder, **options))


KINDS: dict[str, dict[str, Any]] = {
    "regression": {"permutations": 20},
    "classes": {"n_classes": 2, "label": "sarcastic"},
    "several": {"n_classes": 3, "alphas": None, "nested_cv": False},
    "no_folds": {"k_fold": False, "alphas": None},
    "no_test": {"test": False},
    "constant_test": {"constant_test_labels": True, "alphas": None},
    "one_cell": {"join": "1@-1", "alphas": None},
    "layers": {"join": "layers", "alphas": None, "with_inference": False},
    "mean": {"join": "mean", "alphas": None, "with_inference": False},
    "nulls": {"train": np.ones((N_TRAIN, len(LAYERS), len(POSITIONS), 5))},
}
Built = Callable[[str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Result folder of a kind."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            write_results(folders[kind], **KINDS[kind])
        return folders[kind]

    return folder


Shown = Callable[[str], "Page"]


@pytest.fixture(scope="module")
def shown(built: Built) -> Shown:
    """Page of a kind of folder, with prompts, written once."""
    pages: dict[str, Page] = {}

    def page(kind: str) -> Page:
        if kind not in pages:
            pages[kind] = page_of(built(kind), output=built(kind) / "shown.html", prompts=prompts_of())
        return pages[kind]

    return page


@pytest.fixture
def regression(built: Built) -> Path:
    return built("regression")


@pytest.fixture
def classes(built: Built) -> Path:
    return built("classes")


@pytest.fixture
def copied(regression: Path, tmp_path: Path) -> Path:
    """The regression's folder, to be changed."""
    return Path(shutil.copytree(regression, tmp_path / "copied"))


def content(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def change(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(content(folder, name) | values))
    sign(folder)


def say_rows_of_test(folder: Path, n_rows: int, **options: bool) -> None:
    """Say that the test store has so many rows."""
    request = content(folder, "run.json")["request"]
    request["test"]["n_samples"] = n_rows
    request["options"] |= options
    change(folder, "run.json", request=request)


@pytest.mark.slow
def test_regression_page_says_what_was_found(regression: Path, shown: Shown):
    page, found = shown("regression"), content(regression, "inference.json")
    best = content(regression, "best_probe_predictions.json")
    assert page.figures == REGRESSION
    nested, test = (found["intervals"][name] for name in ("nested_cv_score", "test_score"))
    baseline = max(
        (one for one in found["baselines"].values() if one["test_score"] is not None), key=lambda one: one["test_score"]
    )
    assert "A ridge probe was fitted in every cell of 4 layers x 3 positions to predict success_rate" in page.text
    assert "from the hidden states of a model for 48 prompts of /stores/train.zarr, and was scored by" in page.text
    ends = baseline["test_interval"]
    headline = (
        f"strongest baseline {baseline['test_score']:.3f} [{ends['low']:.3f}, {ends['high']:.3f}] {baseline['title']}"
    )
    assert headline in page.text
    assert "over all cells; 0.048 is the smallest possible" in page.text
    assert f"layer {best['best_layer_number']}, position {best['best_position']} '" in page.text
    assert f"gives {found['nested_cv']['score']:.3f} [{nested['low']:.3f}, {nested['high']:.3f}]" in page.text
    smallest = "(20 permutations, which can give 0.048 at the least)"
    assert f"cells gives p = {found['permutation']['p_best']:.2g} {smallest}" in page.text
    assert f"it scores {best['test_score']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" in page.text
    assert f"against {baseline['test_score']:.3f} for the strongest baseline, {baseline['title']}" in page.text
    assert "Not in this report" not in page.text
    assert "/stores/train.zarr" in page.text


@pytest.mark.slow
def test_layers_are_numbers_of_hidden_states_and_positions_have_their_tokens(shown: Shown):
    page = shown("regression")
    data = [row for rows in page.spec("heatmap")["datasets"].values() for row in rows]
    assert {row["layer"] for row in data} == {"0", "1", "2", "5"}
    assert {row["position"] for row in data} == {"-3 '<|im_start|>'", "-2 'assistant'", "-1 '\\n'"}


def test_cells_without_a_score_are_marked_with_the_reason(shown: Shown):
    page = shown("regression")
    assert "3 cells have no score" in page.text
    data = [row for rows in page.spec("heatmap")["datasets"].values() for row in rows if row["layer"] == "0"]
    assert data
    assert {row["score"] for row in data} == {None}
    assert {row["note"] for row in data} == {"every training row is identical here, so there is nothing to learn from"}
    assert {row["CV score"] for row in data} == {"-"}


@pytest.mark.slow
def test_classification_page(shown: Shown):
    page = shown("classes")
    assert page.figures == CLASSES
    assert "A logistic probe was fitted" in page.text
    assert "the 2 classes of sarcastic" in page.text
    assert "There is no p-value (permutations were not asked for)" in page.text
    assert "Permutation test: permutations were not asked for." in page.text
    assert "test, after Platt scaling" in json.dumps(page.spec("reliability"))


@pytest.mark.slow
def test_small_bins_are_not_drawn_and_it_is_said(classes: Path, shown: Shown):
    page, found = shown("classes"), content(classes, "inference.json")
    curves_of = (found["scores"]["test"], found["platt"]["test_scores"])
    counts = [one["count"] for scores in curves_of for one in scores["reliability"] if one["count"]]
    rows = [row for rows in page.spec("reliability")["datasets"].values() for row in rows if "count" in row]
    assert min(counts) < 5 <= max(counts)
    drawn_bins = {(row["series"], row["predicted"]): row["count"] for row in rows}
    assert sorted(drawn_bins.values()) == sorted(count for count in counts if count >= 5)
    small = sum(count < 5 for count in counts)
    assert f"Bins of fewer than 5 rows are not drawn ({small} of {len(counts)})" in page.text


@pytest.mark.slow
def test_methods_can_be_copied(regression: Path, shown: Shown):
    methods = SavedResults.load(regression).methods
    assert methods in shown("regression").text
    for part in (
        "Ridge regressions (without an intercept) were fitted to the hidden states of a model at 4 layers x 3 "
        "positions to predict success_rate for 48 prompts of /stores/train.zarr.",
        "(alpha 0.1, 1 or 10) were chosen by the mean Spearman of 3-fold cross-validation (seed 42).",
        "Nested cross-validation (Varma & Simon 2006) repeated this choice without each fold",
        "scored on 24 test rows, which played no part in any choice (95 % interval: bootstrap, BCa).",
        "compares the highest score of any cell with that of 20 permutations of the labels (among all samples)",
        "Computed in float64 with probesweep 0.1.0.",
    ):
        assert part in methods


@pytest.mark.slow
def test_without_folds_methods_say_so(built: Built):
    methods = SavedResults.load(built("no_folds")).methods
    assert "No probe was chosen, as there was no cross-validation." in methods
    assert "p-value" not in methods


@pytest.mark.slow
def test_several_classes(shown: Shown):
    page = shown("several")
    assert page.figures == [name for name in CLASSES if name != "alphas"]
    series = {row["series"] for rows in page.spec("roc")["datasets"].values() for row in rows if "series" in row}
    assert series == {"class 0", "class 1", "class 2"}
    assert "Each class against all others" in page.text


@pytest.mark.slow
def test_without_folds_no_best_probe_and_the_scores_that_there_are(shown: Shown):
    page = shown("no_folds")
    assert page.figures == ["heatmap", "layers"]
    assert "No best probe is chosen without cross-validation" in page.text
    assert "The test score of each cell." in page.text
    assert "Predicted against actual: no best probe is chosen without cross-validation" in page.text
    assert "Prompts with the largest errors: no best probe" in page.text


@pytest.mark.slow
def test_without_test_rows_or_inference(shown: Shown):
    page = shown("no_test")
    assert page.figures == ["heatmap", "layers", "predictions", "comparison", "alphas"]
    assert "There is no test set: the nested CV score is the one to publish" in page.text
    assert "Permutation test: inference.json is not among the files of this training." in page.text
    assert "All scores: inference.json" in page.text


@pytest.mark.slow
def test_an_undefined_test_score_has_its_reason(shown: Shown):
    page = shown("constant_test")
    assert "There is no test score: the test labels hold only one value" in page.text
    assert "predictions" in page.figures
    assert "Undefined:" in page.text


@pytest.mark.slow
def test_one_cell(shown: Shown):
    page = shown("one_cell")
    assert "1 layer x 1 position" in page.text
    assert "layer 1@-1, position joined" in page.text
    assert "Penalty: one alpha was fitted." in page.text
    assert "assistant" not in page.spec("heatmap")["datasets"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layers", "mean"])
def test_joined_cells(shown: Shown, kind: str):
    assert shown(kind).figures == ["heatmap", "layers", "predictions", "comparison"]


@pytest.mark.slow
def test_null_everywhere(shown: Shown):
    page = shown("nulls")
    assert page.figures == ["heatmap"]
    assert "Score by layer: no cell has a score." in page.text
    assert "No cell has a CV score, so there is no best probe." in page.text
    assert "12 cells have no score" in page.text


@pytest.mark.slow
def test_an_older_inference_without_its_newest_parts(copied: Path):
    known = content(copied, "inference.json")
    kept = {name: known[name] for name in ("nested_cv", "permutation", "baselines")}
    (copied / "inference.json").write_text(json.dumps(kept))
    sign(copied)
    with pytest.raises(ProbeError, match=r"inference\.json: it is missing \(intervals\); run the same training again"):
        write_report(copied)
    run = content(copied, "run.json")
    del run["format_version"]
    (copied / "run.json").write_text(json.dumps(run))
    page = page_of(copied)
    assert "learning_curve" not in page.figures
    assert "Learning curve: it is not in inference.json." in page.text


def prompts_of(n_train: int = N_TRAIN, n_test: int = N_TEST) -> dict[str, list[str]]:
    return {"train": [f"train prompt {i}" for i in range(n_train)], "test": [f"test prompt {i}" for i in range(n_test)]}


@pytest.mark.slow
def test_largest_errors_come_first_with_their_prompts(regression: Path, shown: Shown):
    page, best = shown("regression"), content(regression, "best_probe_predictions.json")
    wrong = np.abs(np.array(best["test_predictions"]) - best["test_actual"])
    listed = [int(row) for row in re.findall(r"test prompt (\d+)", page.text)]
    assert listed == np.argsort(-wrong, kind="stable")[:12].tolist()
    assert len(re.findall(r"train prompt \d+", page.text)) == 12
    assert "Row numbers only" not in page.text
    assert "Row numbers only" in page_of(regression).text


@pytest.mark.slow
def test_class_errors_are_the_probability_that_the_actual_class_did_not_get(classes: Path, shown: Shown):
    page, best = shown("classes"), content(classes, "best_probe_predictions.json")
    wrong = np.abs(np.array(best["test_predictions"]) - best["test_actual"])
    listed = [int(row) for row in re.findall(r"test prompt (\d+)", page.text)]
    assert listed == np.argsort(-wrong, kind="stable")[:12].tolist()


@pytest.mark.slow
def test_prompts_of_rows_that_were_dropped_are_passed_over(copied: Path):
    of_rows = content(copied, "inference.json")["scores"]["test"]
    overlap = {"n_shared": 2, "rows": [0, 3], "dropped": True, "n_unscored": 0}
    overlap |= {"scores_of_shared": None, "scores_of_others": of_rows}
    change(copied, "inference.json", overlap=overlap)
    say_rows_of_test(copied, N_TEST + 2, drop_overlap=True)
    page, best = page_of(copied, prompts=prompts_of(n_test=N_TEST + 2)), content(copied, "best_probe_predictions.json")
    wrong = np.abs(np.array(best["test_predictions"]) - best["test_actual"])
    rows = np.delete(np.arange(N_TEST + 2), [0, 3])
    listed = [int(row) for row in re.findall(r"test prompt (\d+)", page.text)]
    assert listed == rows[np.argsort(-wrong, kind="stable")[:12]].tolist()


@pytest.mark.slow
def test_long_prompts_are_cut_and_it_is_said(regression: Path):
    prompts = prompts_of()
    prompts["test"] = ["x" * 5000] * N_TEST
    assert "(4,400 more characters)" in page_of(regression, prompts=prompts).text


@pytest.mark.slow
def test_prompts_of_another_store_are_refused(regression: Path):
    with pytest.raises(ProbeError, match=f"23 test prompts were given for the {N_TEST} rows of the test store"):
        write_report(regression, prompts=prompts_of(n_test=N_TEST - 1))


@pytest.mark.slow
def test_many_rows_are_thinned_and_it_is_said(regression: Path, tmp_path: Path):
    actual = np.random.default_rng(0).standard_normal(12_500)
    read = SavedResults.load(regression).documents
    best = replace(read.best, test_actual=tuple(actual), test_predictions=tuple(actual / 2))
    request = replace(read.run.request, test=replace(read.run.request.test, n_samples=len(actual)))
    results = SavedResults(replace(read, best=best, run=replace(read.run, request=request)))
    (tmp_path / "page.html").write_text(render(results, [make(results) for make in FIGURES], None))
    page = Page(tmp_path / "page.html")
    assert "Where there are more than 2,000 rows, 2,000 evenly spaced ones are drawn" in page.text
    rows = [row for rows in page.spec("predictions")["datasets"].values() for row in rows]
    assert sum(row.get("series") == "test rows" for row in rows) == MOST_POINTS
    assert len(page.source) < 4e6


def test_thinning_keeps_the_ends():
    assert thinned(5, 10).tolist() == [0, 1, 2, 3, 4]
    kept = thinned(1000, 10)
    assert (len(kept), kept[0], kept[-1]) == (10, 0, 999)
    assert np.ptp(np.diff(kept)) <= 1


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A page all of whose texts attack it."""
    folder = tmp_path_factory.mktemp("hostile")
    prompts = {"train": (ATTACKS * 2)[:N_TRAIN], "test": (ATTACKS[3:] + ATTACKS)[:N_TEST]}
    write_hostile(folder)
    return folder, page_of(folder, prompts=prompts)


def write_hostile(folder: Path) -> None:
    named = iter(ATTACKS * 2)
    write_results(
        folder,
        label=ATTACKS[0],
        train_path=ATTACKS[3],
        asked_beside={"extra": ATTACKS, **{f"extra {i} {attack}": attack for i, attack in enumerate(ATTACKS)}},
        names=([next(named) for _ in LAYERS], [next(named) for _ in POSITIONS]),
        baselines=tuple(" ".join(ATTACKS[start::3]) for start in range(3)),
        permutations=10,
    )
    # Where positions are numbers, tokens are shown too.
    inference = content(folder, "inference.json")
    for scores in inference["scores"].values():
        scores["undefined"]["learnability"] = ATTACKS[6]
    inference["permutation"]["shuffled"] = ATTACKS[7]
    change(folder, "inference.json", **inference)


@pytest.mark.slow
def test_hostile_texts_add_no_markup(hostile: tuple[Path, Page], shown: Shown):
    _, page = hostile
    assert page.open == []
    ordinary = {tag for tag, _ in shown("regression").tags}
    assert {tag for tag, _ in page.tags} <= ordinary | {"ul", "li"}
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "srcdoc", "formaction"})
    assert {attrs["href"] for _, attrs in page.tags if "href" in attrs} == {"#main", "data:,"}
    for attack in ATTACKS[:-1]:
        assert " ".join(visible(attack).split()) in page.text
    assert "49" not in [text.strip() for text in page.texts]


def test_hostile_texts_hold_nothing_that_cannot_be_shown(hostile: tuple[Path, Page]):
    folder, page = hostile
    raw = (folder / "report.html").read_bytes().decode("utf-8")
    assert not set(raw) & set("\x00\x07\x1b\x7f\x85\u2028\u2029\u202e\ufffe")
    assert "\\x1b[31m" in page.text


def test_scripts_are_ours_alone(hostile: tuple[Path, Page]):
    _, page = hostile
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    run = [text for attrs, text in page.scripts if attrs["type"] != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert len(run) == 2
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert sum("vega" in text for text in run) == 2
    assert sum(len(text) > 500_000 for text in run) == 1


@pytest.mark.slow
def test_pictures(regression: Path, tmp_path: Path):
    write_report(regression, tmp_path / "page.html", figures=tmp_path / "figures")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in REGRESSION for kind in ("png", "svg", "pdf")
    )
    for name in REGRESSION:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        tree = ET.parse(tmp_path / "figures" / f"{name}.svg")
        assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(tree.iter("{http://www.w3.org/2000/svg}path"))) > 3


@pytest.mark.slow
def test_pictures_of_hostile_texts_are_whole(hostile: tuple[Path, Page], tmp_path: Path):
    write_report(hostile[0], tmp_path / "page.html", figures=tmp_path / "figures")
    drawn = list((tmp_path / "figures").glob("*.svg"))
    assert len(drawn) >= 6
    for path in drawn:
        assert not list(ET.parse(path).iter("{http://www.w3.org/2000/svg}script"))


@pytest.mark.slow
def test_the_same_results_give_the_same_page(regression: Path, tmp_path: Path):
    pages = [write_report(regression, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_folders_of_another_kind_are_refused(tmp_path: Path):
    with pytest.raises(ProbeError, match=r"holds no finished training; give an output_dir=\.\.\. of a training"):
        write_report(tmp_path)
    with pytest.raises(ProbeError, match="holds no finished training"):
        SavedResults.load(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ProbeError, match=r"run\.json: it is not JSON: .*; remove it and run the same training again"):
        SavedResults.load(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(ProbeError, match=r"run\.json: .*; remove it and run the same training again"):
        SavedResults.load(tmp_path)


@pytest.mark.parametrize("name", ["performance.json", "inference.json", "best_probe_predictions.json", "cells.parquet"])
def test_missing_and_changed_files_are_named(copied: Path, name: str):
    whole = (copied / name).read_bytes()
    for changed in (whole[: len(whole) // 2], whole.replace(b"1", b"2"), b"{}"):
        (copied / name).write_bytes(changed)
        with pytest.raises(ProbeError, match=rf"{re.escape(name)} does not match run\.json next to it"):
            SavedResults.load(copied)
    (copied / name).unlink()
    with pytest.raises(ProbeError, match=re.escape(name)):
        SavedResults.load(copied)


@pytest.mark.slow
def test_saved_results_in_a_notebook(regression: Path, hostile: tuple[Path, Page]):
    results = SavedResults.load(regression)
    assert list(results.to_frame()["layer"].unique()) == LAYERS
    assert "best: layer" in repr(results)
    for name in ("heatmap", "layers", "predictions", "comparison", "permutations", "alphas", "learning_curve"):
        assert "layer" in getattr(results.plot, name)().to_dict()
    with pytest.raises(ProbeError, match="there is no figure roc: the labels are numbers"):
        results.plot.roc()
    shown = SavedResults.load(hostile[0])._repr_html_()
    assert html.escape(ATTACKS[0]) in shown
    assert not re.search(r"<(script|img|svg|iframe|a)\b", shown)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return write_results(tmp_path_factory.mktemp("swept"), with_inference=False)


@pytest.mark.slow
def test_sweep_results_in_a_notebook(swept: SweepResult):
    for chart in (swept.plot.heatmap(), swept.plot.heatmap("test_score"), swept.plot.layers()):
        assert len(chart.to_dict()["layer"]) >= 3
    assert f"layer {swept.best.cell.layer}" in swept._repr_html_()
    assert "<table" in swept._repr_html_()


def rows_shown(chart: alt.LayerChart) -> list[dict[str, object]]:
    """What a notebook and a file get of a chart: all the same rows."""
    spec = chart.to_dict()
    assert json.loads(chart.to_json()) == json.loads(json.dumps(spec))
    rows = [row for values in spec["datasets"].values() for row in values]
    for text in (chart.to_html(), chart._repr_mimebundle_()["text/html"]):
        cells = set(re.findall(r'"layer": "([^"]*)", "position": "([^"]*)"', text))
        assert cells >= {(row["layer"], row["position"]) for row in rows}
    return rows


@pytest.mark.slow
def test_charts_of_more_cells_than_altair_takes_as_a_table():
    n_layers, n_positions = 81, 70
    cells = pd.DataFrame(
        [(layer, position) for position in range(-n_positions, 0) for layer in range(n_layers)],
        columns=["layer", "position"],
    )
    scores = np.random.default_rng(0).random(len(cells))
    scores[7] = np.nan
    cells = cells.assign(cv_score=scores, test_score=scores, train_score=scores, alpha=1.0, reason=None)
    plots = CellPlots(cells, "spearman", (3, -1))
    for chart in (plots.heatmap(), plots.layers()):
        found = {(row["layer"], row["position"]): row["score"] for row in rows_shown(chart)}
        expected = {(str(layer), str(at)): s for layer, at, s in zip(cells.layer, cells.position, scores, strict=True)}
        assert {key: score for key, score in found.items() if score is not None} == {
            key: score for key, score in expected.items() if not np.isnan(score)
        }
    # Whatever a notebook does with tables is left alone, and does not matter.
    with alt.data_transformers.enable("default", max_rows=10):
        assert len(rows_shown(plots.heatmap())) == len(cells) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (curves.roc, ["fpr", "tpr", "order"]),
        (curves.reliability, ["mean_predicted", "fraction_positive", "count", "rows"]),
        (curves.diagonal_scatter, ["actual", "predicted"]),
        (partial(curves.learning_curve, title="score"), ["n_rows", "score"]),
    ],
    ids=["roc", "reliability", "scatter", "learning curve"],
)
def test_curves_of_more_points_than_altair_takes_as_a_table(make: Callable[..., alt.LayerChart], columns: list[str]):
    n = 6000
    frame = pd.DataFrame({name: np.linspace(0, 1, n) for name in columns} | {"series": "a", "row": "a", "tip": "b"})
    chart = make(frame, series=[Series("a", "accent")], tips=["tip"])
    assert max(map(len, chart.to_dict()["datasets"].values())) == n


def test_sweep_result_as_xarray(swept: SweepResult):
    dataset, best = swept.to_xarray(), swept.best
    assert float(dataset.cv_score.sel(layer=best.cell.layer, position=best.cell.position)) == best.cv_score
    assert dataset.test_predictions.dims == ("position", "layer", "test_sample", "output")
    assert dataset.sizes["train_sample"] == N_TRAIN
    assert dataset.reason.sel(layer=0, position=-1).item().startswith("every training row is identical")
    assert dataset.attrs["metric"] == "spearman"


def test_importing_the_package_does_not_import_what_only_reports_need():
    code = (
        "import sys, gpu_probes; print([n for n in ('altair', 'vl_convert', 'jinja2', 'xarray') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = [name for name in ("altair", "vl_convert", "xarray") if f"'{name}'" in done.stdout]
    assert heavy == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert path, "no Chromium: install one, or say where it is with CHROMIUM=/path/to/chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass(frozen=True)
class Opened:
    """A page in a browser, and all that it did besides being shown."""

    tab: Tab
    events: list[str]


@contextmanager
def opened(browser: Browser, page: Path, *, width: int = 1280, scheme: str = "light", **more: Any) -> Iterator[Opened]:
    """Open a page from disk; afterwards it must have kept still, and to itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
    tab, events = context.new_page(), []
    tab.on("console", lambda message: events.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: events.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: events.append(f"request: {request.url}"))
    tab.on("popup", lambda popup: events.append(f"popup: {popup.url}"))
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-drawn]", timeout=20_000)
    yield Opened(tab, events)
    assert [event for event in events if event != f"request: {page.as_uri()}"] == []
    assert tab.evaluate("window.__xss") is None
    assert tab.url == page.as_uri()
    context.close()


def drawn(tab: Tab) -> dict[str, int]:
    """Number of marks of each figure."""
    return tab.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("figure")].map((figure) =>
            [figure.id.slice(2), figure.querySelectorAll("svg .role-mark path, svg .role-mark line").length]))"""
    )


def overflow(tab: Tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("regression", REGRESSION),
        ("classes", CLASSES),
        ("several", [name for name in CLASSES if name != "alphas"]),
        ("no_folds", ["heatmap", "layers"]),
        ("one_cell", ["heatmap", "layers", "predictions", "comparison", "learning_curve"]),
        ("nulls", ["heatmap"]),
    ],
)
def test_browser_draws_every_figure(browser: Browser, shown: Shown, kind: str, figures: list[str]):
    page = shown(kind).path
    with opened(browser, page) as view:
        marks = drawn(view.tab)
        assert list(marks) == figures
        assert all(marks.values())
        view.tab.set_viewport_size({"width": 375, "height": 800})
        assert overflow(view.tab) <= 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_browser_dark_scheme_on_a_phone(browser: Browser, shown: Shown, kind: str):
    page = shown(kind).path
    colours = {}
    for scheme in ("light", "dark"):
        with opened(browser, page, width=375, scheme=scheme) as view:
            assert overflow(view.tab) <= 0
            colours[scheme] = view.tab.evaluate(
                """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                    ...["text", ".mark-line path, .mark-rule line"].map((what) => {
                        const style = getComputedStyle(document.querySelector(`#f-layers svg ${what}`));
                        return what === "text" ? style.fill : style.stroke;
                    })]"""
            )
    assert all(light != dark for light, dark in zip(colours["light"], colours["dark"], strict=True))
    with opened(browser, page, scheme="dark") as view:
        view.tab.emulate_media(media="print")
        assert view.tab.evaluate("getComputedStyle(document.body).backgroundColor") == colours["light"][0]


@pytest.mark.slow
def test_browser_tooltip_under_the_pointer(browser: Browser, shown: Shown):
    with opened(browser, shown("regression").path) as view:
        tooltip = view.tab.locator("#tooltip")
        assert not tooltip.is_visible()
        cell = view.tab.locator("#f-heatmap svg .mark-rect.role-mark path")
        cell.first.hover(position={"x": 4, "y": 4})
        assert tooltip.is_visible()
        assert "every training row is identical here" in tooltip.inner_text()
        cell.last.hover(position={"x": 4, "y": 4})
        assert re.search(r"layer\s+5\s+position\s+-1 '\\n'\s+CV score\s+-?0\.\d{3}", tooltip.inner_text())
        view.tab.mouse.move(2, 2)
        assert not tooltip.is_visible()


@pytest.mark.slow
def test_browser_keys_reach_every_mark(browser: Browser, shown: Shown):
    with opened(browser, shown("regression").path) as view:
        chart, live = view.tab.locator("#f-heatmap .chart"), view.tab.locator("#live")
        chart.focus()
        told = []
        for _ in range(len(LAYERS) * len(POSITIONS)):
            view.tab.keyboard.press("ArrowRight")
            told.append(live.text_content())
            assert view.tab.locator("#tooltip").is_visible()
            assert view.tab.locator("#f-heatmap .ring").count() == 1
        expected = [f"layer {layer}, position {position} '" for position in POSITIONS for layer in LAYERS]
        assert all(text.startswith(start) for text, start in zip(told, expected, strict=True))
        view.tab.keyboard.press("ArrowRight")
        assert live.text_content() == told[-1]
        view.tab.keyboard.press("Home")
        view.tab.keyboard.press("ArrowDown")
        assert live.text_content() == told[len(LAYERS)]
        view.tab.keyboard.press("ArrowUp")
        assert live.text_content() == told[0]
        view.tab.keyboard.press("End")
        assert live.text_content() == told[-1]
        view.tab.keyboard.press("ArrowLeft")
        assert live.text_content() == told[-2]
        view.tab.keyboard.press("Escape")
        assert not view.tab.locator("#tooltip").is_visible()
        assert view.tab.locator(".ring").count() == 0


@pytest.mark.slow
def test_browser_every_figure_has_keys_and_a_name(browser: Browser, shown: Shown):
    with opened(browser, shown("classes").path) as view:
        view.tab.keyboard.press("Tab")
        assert view.tab.evaluate("document.activeElement.className") == "skip"
        for name in CLASSES:
            chart = view.tab.locator(f"#f-{name} .chart")
            assert chart.get_attribute("tabindex") == "0"
            assert chart.get_attribute("aria-label")
            chart.focus()
            view.tab.keyboard.press("ArrowRight")
            assert view.tab.locator("#live").text_content()
        levels = view.tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.slow
def test_browser_runs_no_stranger(browser: Browser, hostile: tuple[Path, Page]):
    with opened(browser, hostile[0] / "report.html") as view:
        assert all(drawn(view.tab).values())
        for chart in view.tab.locator(".chart").all():
            chart.focus()
            for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "End"):
                view.tab.keyboard.press(key)
                inside = "[...document.querySelectorAll('#tooltip *')].map((element) => element.tagName)"
                assert set(view.tab.evaluate(inside)) <= {"DL", "DT", "DD"}
        for summary in view.tab.locator("summary").all():
            summary.click()
        view.tab.locator("#f-heatmap svg .mark-rect.role-mark path").last.hover(position={"x": 4, "y": 4})
        assert ATTACKS[3] in view.tab.locator("#tooltip").inner_text()
        view.tab.set_viewport_size({"width": 375, "height": 800})
        assert overflow(view.tab) <= 0
        view.tab.wait_for_timeout(200)
