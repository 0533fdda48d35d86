"""The table for a paper, read back by other readers of CSV, Markdown and LaTeX."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from gpu_probes.display.wording import one_line
from gpu_probes.report.paper import csv_text, latex_text, markdown_text, paper_rows
from gpu_probes.results.documents import Results
from tests.helpers.commands import run
from tests.helpers.result_folders import ATTACKS, write_results

pytestmark = pytest.mark.slow

HOSTILE = [
    *(attack for attack in ATTACKS if attack.isprintable()),
    "50% & $x_1$ ~ #1 \\^{a} --- [b]* `c` |d|",
    "-3",
    "*[x]",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trainings: of numbers, of classes, and without a best probe."""
    made = tmp_path_factory.mktemp("table")
    write_results(made / "a numbers", permutations=9, dataset="data/q.parquet", model="org/model_1")
    write_results(made / "b classes", n_classes=2, permutations=9, label="right", baselines=(), alphas=None)
    write_results(made / "c nothing", k_fold=False, alphas=None, baselines=())
    return made


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_csv_has_what_the_files_have(folder: Path):
    done = run("table", folder, "--format", "csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [Path(row["results"]).name for row in rows] == ["a numbers", "b classes", "c nothing"]
    for row in rows[:2]:
        best = read(Path(row["results"]) / "best_probe_predictions.json")
        found = read(Path(row["results"]) / "inference.json")
        assert (row["layer"], row["position"]) == (str(best["best_layer_number"]), str(best["best_position"]))
        expected = {
            "cv_score": best["cv_score"],
            "test_score": best["test_score"],
            "nested_cv_score": found["nested_cv"]["score"],
            "p": found["permutation"]["p_best"],
            "layer_0_test_score": found["baselines"]["layer_0"]["test_score"],
            "random_labels_test_score": found["baselines"]["random_labels"]["test_score"],
        }
        for name, of in (("nested_cv_score", "nested_cv_score"), ("test_score", "test_score")):
            expected |= {f"{name}_{end}": found["intervals"][of][end] for end in ("low", "high")}
        for name, value in expected.items():
            assert row[name] == ("" if value is None else repr(value)), name
        assert row["n_permutations"] == "9"
    assert (rows[0]["model"], rows[0]["dataset"], rows[0]["token"]) == ("org/model_1", "data/q.parquet", "assistant")
    assert [row["p_statistic"] for row in rows] == ["probe", "least_squares", ""]
    assert rows[0]["prompt_length_test_score_low"]
    assert not rows[1]["prompt_length_test_score_low"]
    assert {name for name, value in rows[2].items() if value} == {
        *("results", "model", "dataset", "label", "task_type", "metric", "probe", "n_train"),
    }


def test_folders_can_be_several_and_come_once(folder: Path):
    done = run("table", folder / "b classes", folder, folder / "a numbers", "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(row["results"]).name for row in json.loads(done.stdout)] == ["b classes", "a numbers", "c nothing"]


def test_scores_stand_with_their_intervals(folder: Path):
    shown = run("table", folder).stdout
    (row,) = (line for line in shown.splitlines() if "org/model" in line)
    found = read(folder / "a numbers/inference.json")
    low, high = (found["intervals"]["nested_cv_score"][end] for end in ("low", "high"))
    assert f"| {found['nested_cv']['score']:.3f} \\[{low:.3f}, {high:.3f}\\] |" in row
    assert "nan" not in shown.lower()
    assert "None" not in shown


class Cells(HTMLParser):
    """Texts of the cells of a table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def hostile(folder: Path) -> list[dict]:
    """Rows all of whose texts attack the reader of a table."""
    rows = paper_rows([Results.load(folder / "a numbers")])
    return [rows[0] | {"model": text, "label": text, "token": text} for text in HOSTILE]


def test_markdown_shows_every_text_as_it_is(hostile: list[dict]):
    shown = Cells(
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown_text(hostile))
    )
    assert shown.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    place = shown.rows[0].index("token")
    assert len({len(row) for row in shown.rows}) == 1
    assert [row[place] for row in shown.rows[1:]] == HOSTILE
    assert [row[0] for row in shown.rows[1:]] == HOSTILE


_COMMANDS = {
    **{f"\\text{name}": letter for name, letter in {
        "backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "greater": ">", "bar": "|",
    }.items()},
    "\\char34": '"', "\\char39": "'", "\\char96": "`",
}  # fmt: skip


def printed(cell: str) -> str:
    """What TeX prints; anything but text, escaped characters and the commands above is an error."""
    tokens = re.findall(r"\\char\d\d|\\[a-z]+|\\.|\$-\$|.", cell)
    assert "".join(tokens) == cell
    out = []
    for token in tokens:
        assert token not in ("&", "%", "$", "#", "_", "~", "^", "<", ">", "|", '"'), cell
        out.append(_COMMANDS.get(token, "" if token in "{}" else "-" if token == "$-$" else token.removeprefix("\\")))
    return "".join(out)


def test_latex_prints_every_text_as_it_is(hostile: list[dict]):
    comment, begin, top, header, middle, *body, bottom, end = latex_text(hostile).splitlines()
    assert (top, middle, bottom, end) == ("\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}")
    assert comment.startswith("% needs \\usepackage{booktabs}")
    lines = [line.removesuffix(" \\\\").split(" & ") for line in (header, *body)]
    names = [printed(cell) for cell in lines[0]]
    assert begin == f"\\begin{{tabular}}{{{'l' * len(names)}}}"
    assert {len(line) for line in lines} == {len(names)}
    assert [printed(line[names.index("token")]) for line in lines[1:]] == HOSTILE
    # After a line's end TeX would read these as its options.
    assert not [line for line in body if line.startswith(("[", "*"))]


def test_a_control_character_never_breaks_a_row(folder: Path):
    rows = [one | {"token": "\n\x00\x1b"} for one in paper_rows([Results.load(folder / "a numbers")])]
    assert next(csv.DictReader(io.StringIO(csv_text(rows))))["token"] == one_line("\n\x00\x1b")
    assert len(markdown_text(rows).splitlines()) == 3


def test_what_is_no_training_is_refused(folder: Path, tmp_path: Path):
    done = run("table", folder, tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} holds no finished training" in done.stderr
