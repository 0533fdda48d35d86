"""Whatever is wrong in a document of a result folder, it is refused in one line, or it changes nothing that is said."""

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors
import safetensors.numpy

from gpu_probes import ProbeError, SavedProbes
from gpu_probes.report import SavedResults
from gpu_probes.report.summary import describe, summarize
from gpu_probes.results.documents import Results
from gpu_probes.results.folder import FORMAT_VERSION, Run
from gpu_probes.results.inference import Evidence
from gpu_probes.results.transfer import find_trainings
from probesweep import RequestError
from probesweep.use.card import Card
from tests.helpers.result_folders import sign, write_results

pytestmark = pytest.mark.slow

DELETED = object()
CHANGES = {
    "deleted": DELETED,
    "null": None,
    "5": 5,
    "x": "x",
    "list": [],
    "NaN": float("nan"),
    "huge": 1e308,
    "true": True,
}
DOCUMENTS = ["run.json", "performance.json", "best_probe_predictions.json", "inference.json", "probe.json"]
KINDS: dict[str, dict[str, Any]] = {
    "numbers": {"permutations": 20},
    "classes": {"n_classes": 2, "permutations": 5},
}
# Of each place, so many of the changes, for time; all of them hold. The next place takes the next ones.
AT_ONCE = 1
# What nothing else in the folder says again: free texts, scores of fits that are not in it and may be undefined, and
# what no reader shows. Numbers among them are in their range.
FREE = [
    ("run.json", r"request\.probesweep|request\.(train|test)\.(path|content)", {"x"}),
    ("run.json", r"request\.options\.weight_column", {"x"}),
    ("run.json", r"position_tokens\.\d+|model|weights|dataset", {"x", "null"}),
    # Without prompts it has no effect.
    ("run.json", r"request\.options\.split_repeats", {"true"}),
    # Fits at an alpha that was not selected may have no score.
    ("performance.json", r"alpha_cv_scores\.pos_-1_layer_3\.\d+\.\d+", {"null"}),
    (
        "inference.json",
        r"baselines\.\w+\.title|permutation\.shuffled|.*\.(method|note|reason|undefined\.\w+)",
        {"x"},
    ),
    ("inference.json", r"baselines\.(?!layer_0)\w+\.cv_score|baselines\.random_\w+\.test_score", {"null"}),
    ("inference.json", r"baselines\.prompt_length|learning_curve\.0", {"deleted"}),
    ("inference.json", r"learning_curve\.\d+\.(cv|test)_score", {"null"}),
    ("inference.json", r"learning_curve\.\d+\.n_rows", {"5"}),
    ("inference.json", r"groups\.test_rows_grouped", {"true"}),
    ("inference.json", r"nested_cv\.predictions\.\d+", {"5", "huge"}),
    # 5 is another layer of the same store.
    ("inference.json", r"nested_cv\.folds\.\d+\.layer", {"5"}),
]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    write_results(made, **KINDS[request.param])
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a document; of long lists, and of what is said of each cell, the first and the last."""
    if isinstance(value, dict):
        keys = list(value)
        cells = [key for key in keys if re.match(r"pos_-?\d+_layer_", str(key))]
        keys = [key for key in keys if key not in cells[1:-1]]
    elif isinstance(value, list) and value:
        keys = sorted({0, len(value) - 1})
    else:
        return
    for key in keys:
        yield (*above, key)
        yield from places(value[key], (*above, key))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> str:
    """The document's text with another value at a place."""
    copy = json.loads(json.dumps(document))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    if value is DELETED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return json.dumps(copy)


def said(folder: Path) -> str:
    """All that readers say of a folder, but for pictures, which are made of the same objects."""
    results = SavedResults.load(folder)
    (training,) = find_trainings(folder)
    parts = [
        summarize(folder),
        json.dumps(describe(folder)),
        repr(results),
        results.to_frame().to_json(),
        replace(training.run, files={}, format_version=FORMAT_VERSION),
    ]
    parts += [results.performance, results.best, results.evidence, Card.of(results.documents), training.probes.best]
    return "\n".join(map(str, [*parts, SavedProbes.load(folder).coef.tolist()]))


def refused(folder: Path) -> str | None:
    """The line that a folder is refused with."""
    try:
        Card.of(Results.load(folder))
    except (ProbeError, RequestError) as error:
        line = str(error)
    else:
        return None
    assert line.startswith(str(folder))
    assert "\n" not in line
    assert re.search(r"; (remove it and )?(run the same training|train) again$|that wrote it$", line), line
    return line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_change_of_a_document_is_refused_or_changes_nothing(folder: Path, name: str):
    path, expected = folder / name, said(folder)
    text, run_text = path.read_text(), (folder / "run.json").read_text()
    document, run = json.loads(text), json.loads(run_text)
    wrong = []
    turn = itertools.cycle(CHANGES.items())
    for place in places(document):
        for what, value in itertools.islice(turn, AT_ONCE):
            found = changed(document, place, value)
            if found == json.dumps(document):
                continue
            path.write_text(found)
            if name != "run.json":
                run["files"][name] = hashlib.sha256(found.encode()).hexdigest()
                (folder / "run.json").write_text(json.dumps(run))
            where = ".".join(map(str, place))
            if refused(folder) is None and not is_free(name, where, what) and said(folder) != expected:
                wrong.append((where, what))
    path.write_text(text)
    (folder / "run.json").write_text(run_text)
    assert wrong == []
    assert said(folder) == expected


def is_free(name: str, where: str, what: str) -> bool:
    return any(name == one and what in changes and re.fullmatch(pattern, where) for one, pattern, changes in FREE)


@pytest.mark.parametrize("name", [*DOCUMENTS[1:], "cells.parquet", "probes.safetensors", "all_predictions.json"])
def test_a_file_that_is_gone_is_named_and_not_taken_for_none(copied: Path, name: str):
    (copied / name).unlink()
    for read in (summarize, describe, find_trainings, SavedResults.load, SavedProbes.load, Card.load):
        with pytest.raises(
            ProbeError, match=rf"{re.escape(name)}: it is missing, and run\.json names it; run the same"
        ):
            read(copied)


def test_a_newer_format_is_refused_with_both_versions_and_none_is_the_first(copied: Path):
    document = json.loads((copied / "run.json").read_text())
    assert document["format_version"] == FORMAT_VERSION
    (copied / "run.json").write_text(json.dumps(document | {"format_version": FORMAT_VERSION + 7}))
    for read in (summarize, find_trainings, SavedResults.load, Run.load):
        with pytest.raises(
            ProbeError, match=rf"has format {FORMAT_VERSION + 7}, and .* reads formats up to {FORMAT_VERSION}"
        ):
            read(copied)
    before = {name: value for name, value in document.items() if name != "format_version"}
    (copied / "run.json").write_text(json.dumps(before))
    assert Results.load(copied).run.format_version == 1


def test_folders_of_the_first_format_may_lack_what_came_later(copied: Path):
    document = json.loads((copied / "inference.json").read_text())
    parts = {name: document[name] for name in ("nested_cv", "permutation", "baselines")}
    (copied / "inference.json").write_text(json.dumps(parts))
    best = json.loads((copied / "best_probe_predictions.json").read_text())
    best = {name: value for name, value in best.items() if not name.endswith("_ranked")}
    (copied / "best_probe_predictions.json").write_text(json.dumps(best))
    sign(copied)
    run = json.loads((copied / "run.json").read_text())
    del run["format_version"]
    (copied / "run.json").write_text(json.dumps(run))
    results = SavedResults.load(copied)
    assert results.evidence.intervals is None
    assert describe(copied)["intervals"] == {"test_score": None, "nested_cv_score": None}
    assert "Nested CV, the score to publish" in summarize(copied)


def test_folders_from_before_there_was_a_choice_of_statistics_say_the_same(tmp_path: Path):
    write_results(tmp_path, n_classes=2, permutations=5, permutation_statistic="probe")
    expected = said(tmp_path)
    for name, section, key in (
        ("inference.json", "permutation", "statistic"),
        ("run.json", "options", "permutation_statistic"),
    ):
        document = json.loads((tmp_path / name).read_text())
        inside = document["request"] if name == "run.json" else document
        del inside[section][key]
        (tmp_path / name).write_text(json.dumps(document))
    sign(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["dataset"], run["versions"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert said(tmp_path) == expected.replace(", 'permutation_statistic': 'probe'", "")
    assert "Permutation test over all cells: p = " in summarize(tmp_path)


def test_evidence_is_saved_and_loaded(copied: Path, tmp_path: Path):
    found = Evidence.load(copied)
    found.save(tmp_path)
    assert (tmp_path / "inference.json").read_bytes() == (copied / "inference.json").read_bytes()
    assert Evidence.load(tmp_path) == found


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("cv_score", value) for value in (0.5, float("nan"), float("inf"), "x", None)),
        *(("layer", value) for value in (7, "x", None)),
        *(("status", value) for value in ("x", "OK", None)),
        *(("p", value) for value in (0.9, float("nan"))),
        *(("alpha", value) for value in (5.0, float("nan"))),
        *(("reason", value) for value in ("x", 5)),
    ],
)
def test_a_changed_table_of_cells_is_refused(copied: Path, column: str, value: object):
    cells = pd.read_parquet(copied / "cells.parquet")
    at = 0 if column in ("status", "reason") else cells["cv_score"].idxmax()
    values = cells[column].astype(object)
    values[at] = value
    changed_cells = cells.assign(**{column: pd.Series(values.tolist(), dtype=None if column != "reason" else object)})
    try:
        changed_cells.to_parquet(copied / "cells.parquet")
    except Exception:
        pytest.skip("Parquet does not hold it")
    sign(copied)
    assert "cells.parquet" in (refused(copied) or "")
    cells.drop(columns=column).to_parquet(copied / "cells.parquet")
    sign(copied)
    assert f"it has no such column ({column})" in (refused(copied) or "")


@pytest.mark.parametrize(
    "name", ["layers", "positions", "task_type", "classes", "selected_alpha", "status", "format_version"]
)
@pytest.mark.parametrize("value", [None, 5, "x", [], True])
def test_a_changed_header_of_the_probes_is_refused(copied: Path, name: str, value: object):
    with safetensors.safe_open(copied / "probes.safetensors", "numpy") as file:
        about, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in ("coef", "intercept")}
    if json.loads(about[name]) == value:
        return
    about[name] = json.dumps(value)
    safetensors.numpy.save_file(tensors, copied / "probes.safetensors", about)
    sign(copied)
    assert "probes.safetensors" in (refused(copied) or "")
