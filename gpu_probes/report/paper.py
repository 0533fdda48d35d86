"""For a paper: the best probes of several trainings as a table, and how one of them was made, to copy. No I/O."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from gpu_probes.display.wording import METRICS, interval, number, one_line, statistic_text
from gpu_probes.results.folder import Run
from gpu_probes.results.forms import Documents
from gpu_probes.results.inference import Evidence, Intervals, Permutation
from gpu_probes.scores.intervals import Interval

Value = str | int | float | None
Row = dict[str, Value]
_NO_INTERVALS = Intervals(test_score=None, nested_cv_score=None, best_minus_cell=())
_BASELINES = {"tfidf": "TF-IDF"}
_PROBES = {
    "ridge": "Ridge regressions",
    "logistic": "Logistic regressions",
    "binomial": "Binomial regressions (logistic, of rates)",
    "lda": "Linear discriminants",
    "mass_mean": "Difference-of-means probes",
}


def dataset_of(run: Run) -> str:
    """Where the training prompts come from: the dataset, or the store where that is not known."""
    return run.dataset or run.request.train.path


def paper_rows(trainings: Sequence[Documents]) -> list[Row]:
    """One row for each training: its best probe, and what that is compared with.

    Parameters
    ----------
    trainings : sequence of Results

    Returns
    -------
    list of dict
        All with the same keys: ``results``, ``model``, ``dataset``, ``label``, ``task_type``, ``metric``, ``probe``,
        ``layer``, ``position``, ``token``, ``alpha``, ``n_train``, ``n_test``, ``cv_score``, ``nested_cv_score`` and
        ``test_score`` with ``_low`` and ``_high``, ``cv_ceiling`` and ``test_ceiling`` likewise (the best that any
        predictor can reach on labels that are shares of attempts), ``p``, ``n_permutations``, ``p_statistic``, and of
        each baseline of any training ``NAME_cv_score``, and ``NAME_test_score`` with ``_low`` and ``_high``. What is
        undefined is None.
    """
    rows = [_probe(one) | _scores(one) | _p_value((one.evidence or Evidence()).permutation) for one in trainings]
    names = dict.fromkeys(name for one in trainings for name in (one.evidence or Evidence()).baselines or {})
    return [row | _baselines(one, list(names)) for row, one in zip(rows, trainings, strict=True)]


def csv_text(rows: Sequence[Row]) -> str:
    """All columns, numbers with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_plain(value) for value in row.values()] for row in rows)
    return out.getvalue().rstrip("\n")


def markdown_text(rows: Sequence[Row]) -> str:
    """A table as GitHub shows it; columns without any value are left out."""
    header, body = _shown(rows)
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(map(_in_markdown, line) if line is not lines[1] else line)} |" for line in lines)


def latex_text(rows: Sequence[Row]) -> str:
    """A ``tabular`` with the rules of booktabs; columns without any value are left out."""
    header, body = _shown(rows)
    lines = [f"{' & '.join(map(_in_latex, line))} \\\\" for line in (header, *body)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}; letters beyond the Latin script need LuaLaTeX or XeLaTeX",
            f"\\begin{{tabular}}{{{'l' * len(header)}}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "csv": csv_text,
    "latex": latex_text,
    "markdown": markdown_text,
}


def methods(training: Documents) -> str:
    """How the results of a training came about, in sentences for a paper."""
    sentences = [_fitted(training), *_chosen(training), *_tested(training), *_permuted(training), _computed(training)]
    return " ".join(sentences)


def _probe(training: Documents) -> Row:
    """What was trained on what, and the best probe's place."""
    run, best, performance = training.run, training.best, training.performance
    position = None if best is None else best.best_position_idx
    tokens = run.position_tokens
    joined = any(isinstance(one, str) for one in performance.positions)
    known = position is not None and not joined and position < len(tokens)
    return {
        "results": str(training.folder),
        "model": run.model,
        "dataset": dataset_of(run),
        "label": run.label,
        "task_type": performance.task_type,
        "metric": performance.metric,
        "averaging": performance.averaging,
        "probe": training.probes.header.probe,
        "layer": None if best is None else best.best_layer_number,
        "position": None if best is None else best.best_position,
        "token": tokens[position] if known and position is not None else None,
        "alpha": None if best is None else best.selected_alpha,
        "n_train": run.request.train.n_samples,
        "n_test": None if best is None or best.test_actual is None else len(best.test_actual),
    }


def _scores(training: Documents) -> Row:
    best, evidence = training.best, training.evidence or Evidence()
    intervals, nested = evidence.intervals or _NO_INTERVALS, evidence.nested_cv
    return {
        "cv_score": None if best is None else best.cv_score,
        **_with_ends("nested_cv_score", None if nested is None else nested.score, intervals.nested_cv_score),
        **_with_ends("test_score", None if best is None else best.test_score, intervals.test_score),
        **_ceiling("cv_ceiling", evidence.ceiling_of("train", training.performance.metric)),
        **_ceiling("test_ceiling", evidence.ceiling_of("test", training.performance.metric)),
    }


def _ceiling(name: str, found: Interval | None) -> Row:
    return _with_ends(name, None if found is None else found.estimate, found)


def _with_ends(name: str, score: float | None, found: Interval | None) -> Row:
    ends = (None, None) if found is None else (found.low, found.high)
    return {name: score, f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _p_value(found: Permutation | None) -> Row:
    if found is None or found.p_best is None:
        return {"p": None, "n_permutations": None, "p_statistic": None}
    return {"p": found.p_best, "n_permutations": found.n_permutations, "p_statistic": found.statistic}


def _baselines(training: Documents, names: Sequence[str]) -> Row:
    held, row = (training.evidence or Evidence()).baselines or {}, Row()
    for name in names:
        one = held.get(name)
        row[f"{name}_cv_score"] = None if one is None else one.cv_score
        row |= _with_ends(
            f"{name}_test_score", None if one is None else one.test_score, None if one is None else one.test_interval
        )
    return row


def _shown(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as readers see them: three digits, scores with their intervals in one cell."""
    suffix = "_test_score"
    baselines = [name.removesuffix(suffix) for name in rows[0] if name.endswith(suffix)]
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda row: _plain(row["model"]),
        "label": lambda row: _plain(row["label"]),
        "layer": lambda row: _plain(row["layer"]),
        "position": lambda row: _plain(row["position"]),
        "token": lambda row: _plain(row["token"]),
        "score": lambda row: ", ".join(filter(None, (METRICS[str(row["metric"])], _plain(row["averaging"])))),
        "CV": lambda row: _score(row, "cv_score"),
        "nested CV [95 %]": lambda row: _score(row, "nested_cv_score"),
        "test [95 %]": lambda row: _score(row, "test_score"),
        "ceiling, CV [95 %]": lambda row: _score(row, "cv_ceiling"),
        "ceiling, test [95 %]": lambda row: _score(row, "test_ceiling"),
        "p": lambda row: "" if row["p"] is None else number(_number(row["p"]), ".2g"),
    }
    columns |= {
        f"{_BASELINES.get(name, name.replace('_', ' '))}, test [95 %]": lambda row, key=f"{name}{suffix}": _score(
            row, key
        )
        for name in baselines
    }
    filled = {title: [show(row) for row in rows] for title, show in columns.items()}
    kept = {title: cells for title, cells in filled.items() if any(cells)}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def _score(row: Row, key: str) -> str:
    """A score and its interval; nothing where it is undefined."""
    if row[key] is None:
        return ""
    low, high = (_number(row.get(f"{key}_{end}")) for end in ("low", "high"))
    return f"{number(_number(row[key]))} {interval((low, high))}".replace("\N{NO-BREAK SPACE}", " ").strip()


def _number(value: Value) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)


def _plain(value: Value) -> str:
    """A value as text on one line, all digits; nothing for None."""
    return "" if value is None else one_line(value)


# Whatever Markdown takes for markup; a backslash may stand before any of them.
_MARKDOWN = {character: f"\\{character}" for character in "\\`*_{}[]<>()#+!|~&$@:"}
# Whatever TeX takes for something else, and what it joins to ligatures or reads after a line's end.
_LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "{\\char34}",
    "'": "{\\char39}",
    "`": "{\\char96}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*,?!"},
    "-": "{-}",
}


def _in_markdown(text: str) -> str:
    return text.translate(str.maketrans(_MARKDOWN))


def _in_latex(text: str) -> str:
    """Text as TeX prints it; a number's sign is a minus."""
    if text[:1] == "-" and text[1:2].isdigit():
        return f"$-${_in_latex(text[1:])}"
    return text.translate(str.maketrans(_LATEX)).replace("{[}{-}", "{[}$-$").replace("{,} {-}", "{,} $-$")


def _fitted(training: Documents) -> str:
    """Which probes were fitted to what."""
    run, of, asked = training.run, training.performance, training.run.request.options
    probe = training.probes.header.probe
    options = ["with an intercept" if of.fit_intercept else "without an intercept"]
    options += ["features standardized on the training rows of each fit"] if of.standardize else []
    options += [f"rows weighted by {one_line(asked['weight_column'])}"] if asked.get("weight_column") else []
    what = one_line(run.label) if of.classes is None else f"the {len(of.classes)} classes of {one_line(run.label)}"
    return (
        f"{_PROBES.get(probe, one_line(probe))} ({', '.join(options)}) were fitted to the hidden states of "
        f"{one_line(run.model or 'the model')} at {of.n_layers} layers x {of.n_positions} positions to predict {what} "
        f"for {run.request.train.n_samples:,} prompts of {one_line(dataset_of(run))}."
    )


def _chosen(training: Documents) -> list[str]:
    """How the best probe was chosen, and what its score was corrected for."""
    of, asked, evidence = training.performance, training.run.request.options, training.evidence or Evidence()
    if not of.k_fold:
        return ["No probe was chosen, as there was no cross-validation."]
    grid = of.alpha_grid or ()
    among = f"Layer, position and penalty (alpha {_listed(grid)})" if len(grid) > 1 else "Layer and position"
    metric, together = of.metric_title, _held_together(asked, evidence)
    sentences = [
        f"{among} were chosen by the mean {metric} of {of.n_folds}-fold cross-validation (seed {of.seed}{together})."
    ]
    nested = evidence.nested_cv
    if nested is not None and nested.score is not None:
        found = evidence.intervals and evidence.intervals.nested_cv_score
        sentences.append(
            "Nested cross-validation (Varma & Simon 2006) repeated this choice without each fold and scored it on that "
            f"fold{_interval_method(found)}."
        )
    return sentences


def _held_together(asked: Mapping[str, object], evidence: Evidence) -> str:
    """What folds do not separate."""
    held = [f"rows of the same {one_line(asked['groups'])}"] if asked.get("groups") else []
    groups = evidence.groups
    known = groups is not None and groups.n_repeated_prompts is not None
    held += ["repeated prompts"] if known else []
    return f"; {' and '.join(held)} held out together" if held else ""


def _tested(training: Documents) -> list[str]:
    """On which rows the best probe was tested."""
    best, evidence = training.best, training.evidence or Evidence()
    if training.run.request.test is None:
        return ["There was no test set."]
    if best is None or best.test_score is None:
        return []
    overlap = evidence.overlap
    without = ""
    if overlap is not None and overlap.dropped and overlap.n_shared:
        without = f", without the {overlap.n_shared:,} whose prompts also occur in training"
    found = evidence.intervals and evidence.intervals.test_score
    return [
        f"The best probe was then scored on {len(best.test_actual or ()):,} test rows, which played no part in any "
        f"choice{without}{_interval_method(found)}."
    ]


def _interval_method(found: Interval | None) -> str:
    known = found is not None and found.low is not None
    return f" (95 % interval: {one_line(found.method)})" if found is not None and known else ""


def _permuted(training: Documents) -> list[str]:
    """What p is of."""
    found = (training.evidence or Evidence()).permutation
    if found is None or found.p_best is None:
        return []
    by = statistic_text(found.statistic, training.performance.task_type)
    return [
        f"The p-value compares the highest score of any cell{by and by + ','} with that of {found.n_permutations:,} "
        f"permutations of the labels ({one_line(found.shuffled)}), each fitted in every cell with the same folds and "
        "penalties (maxT, Westfall & Young 1993)."
    ]


def _computed(training: Documents) -> str:
    """With which versions."""
    run = training.run
    others = [f"{name} {version}" for name, version in run.versions.items() if version]
    return f"Computed in float64 with {', '.join(map(one_line, [f'probesweep {run.request.probesweep}', *others]))}."


def _listed(values: Sequence[float]) -> str:
    texts = [f"{value:g}" for value in values]
    return f"{', '.join(texts[:-1])} or {texts[-1]}"
