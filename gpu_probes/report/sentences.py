"""The question and the findings, in plain sentences and a few large numbers."""

from __future__ import annotations

from dataclasses import dataclass

from gpu_probes.display.wording import (
    caution,
    interval,
    listed,
    number,
    one_line,
    position_text,
    statistic_text,
)
from gpu_probes.report.load import SavedFiles, ends_of, strongest
from gpu_probes.report.paper import dataset_of
from gpu_probes.report.predictions import names_of
from gpu_probes.results.inference import BaselineScores
from gpu_probes.scores.intervals import Interval

_PROBES = {
    "ridge": "ridge",
    "logistic": "logistic",
    "binomial": "binomial",
    "lda": "linear discriminant",
    "mass_mean": "difference-of-means",
}


@dataclass(frozen=True)
class Headline:
    """A number to remember, its name, and a detail."""

    value: str
    name: str
    detail: str


def three_sentences(results: SavedFiles) -> list[str]:
    """What was fitted; what was found and how certain it is; how it does on the test rows."""
    return [_asked(results), _found(results), _tested(results)]


def headlines(results: SavedFiles) -> list[Headline]:
    """Nested CV, test, strongest baseline, p-value: whichever exist."""
    if results.best is None:
        return []
    intervals, nested, baseline = results.intervals, results.nested_score, strongest(results)
    permutation = results.evidence.permutation
    found: list[Headline] = []
    if nested is not None:
        found.append(Headline(number(nested), "nested CV", interval(ends_of(intervals.nested_cv_score))))
    if results.best.test_score is not None:
        found.append(Headline(number(results.best.test_score), "test", interval(ends_of(intervals.test_score))))
    if baseline is not None:
        score = baseline.cv_score if baseline.test_score is None else baseline.test_score
        # The interval is that of its test score.
        ends = () if baseline.test_score is None else ends_of(baseline.test_interval)
        detail = f"{interval(ends)} {one_line(baseline.title)}" if ends else one_line(baseline.title)
        found.append(Headline(number(score), "strongest baseline", detail.strip()))
    if permutation is not None and permutation.p_best is not None:
        detail = f"over all cells; {number(permutation.smallest_p, '.2g')} is the smallest possible"
        found.append(Headline(number(permutation.p_best, ".2g"), "p-value", detail))
    return found


def ceiling_sentence(results: SavedFiles) -> str:
    """How well any predictor could score on labels that are shares of attempts; empty where they are none."""
    metric = results.performance.metric
    known: dict[str, Interval] = {}
    reasons: list[str] = []
    held = results.evidence.ceiling or {}
    for split, found in held.items():
        name = "in cross-validation" if split == "train" else "on the test rows"
        score = found.scores.get(metric)
        if score is not None and score.estimate is not None:
            known[name] = score
        else:
            reasons.append(f"{name}: {one_line(found.reason or (score and score.reason))}")
    text = f" The best score that any predictor can reach is unknown {'; '.join(reasons)}." if reasons else ""
    if not known:
        return text.strip()
    attempts = ", ".join(dict.fromkeys(one.attempts for one in held.values() if one.reason is None))
    of_classes = any(one.threshold is not None for one in held.values())
    what = "follow from shares" if of_classes else "are shares"
    scores = " and ".join(f"{number(one.estimate)} {interval(ends_of(one))} {name}" for name, one in known.items())
    notes = "".join(dict.fromkeys(caution(one.note) for one in known.values()))
    return (
        f"Labels {what} of {attempts} per question, and so partly luck: the true success rates themselves would score "
        f"{scores} (ceiling).{notes}{text}"
    )


def _asked(results: SavedFiles) -> str:
    performance, run = results.performance, results.run
    cells = f"{_count(performance.n_layers, 'layer')} x {_count(performance.n_positions, 'position')}"
    probe = results.documents.probes.header.probe
    names, metric = names_of(results), performance.metric_title
    what = f"the {len(names)} classes of {one_line(results.label)}" if names else one_line(results.label)
    what += f" ({listed(names)})" if performance.class_names else ""
    scored = f"{metric} correlation" if performance.metric == "spearman" else metric
    model = "a model that is not named" if not run.model else one_line(run.model)
    return (
        f"A {_PROBES.get(probe, one_line(probe))} probe was fitted in every cell of {cells} to predict {what} from the "
        f"hidden states of {model} for {run.request.train.n_samples:,} prompts of {one_line(dataset_of(run))}, and was "
        f"scored by {scored}."
    )


def _found(results: SavedFiles) -> str:
    if results.best is None or results.best_cell is None:
        return f"{results.why_no_best[0].upper()}{results.why_no_best[1:]}."
    layer, position = results.best_cell
    where = f"layer {one_line(layer)}, position {position_text(position, results.tokens.get(position))}"
    chosen = f"Cross-validation chose {where}, with a CV score of {number(results.best.cv_score)}"
    text = f"{chosen}. This is the highest of many scores, so it is biased upwards"
    return f"{text}; {_nested(results)}.{_doubt(results.intervals.nested_cv_score)} {_p_value(results)}."


def _doubt(found: Interval | None) -> str:
    """A warning about an interval."""
    return caution(None if found is None else found.note)


def _nested(results: SavedFiles) -> str:
    nested = results.nested_score
    if nested is None:
        return f"there is no nested CV score ({results.why_missing('nested_cv')})"
    found = interval(ends_of(results.intervals.nested_cv_score))
    return f"nested cross-validation, which repeats the choice for each fold, gives {number(nested)} {found}".rstrip()


def _p_value(results: SavedFiles) -> str:
    found = results.evidence.permutation
    if found is None or found.p_best is None:
        return f"There is no p-value ({results.why_missing('permutation')})"
    by = statistic_text(found.statistic, results.performance.task_type)
    test = f"A permutation test over all cells{by and by + ','} gives p = {found.p_best:.2g}"
    smallest = number(found.smallest_p, ".2g")
    return f"{test} ({found.n_permutations:,} permutations, which can give {smallest} at the least)"


def _tested(results: SavedFiles) -> str:
    if results.best is None:
        return "The scores of all cells follow."
    score = results.best.test_score
    if results.run.request.test is None:
        return "There is no test set: the nested CV score is the one to publish."
    if score is None:
        return f"There is no test score{_why_no_test(results)}."
    n_rows = len(results.best.test_actual or ())
    found = interval(ends_of(results.intervals.test_score))
    text = f"On {_count(n_rows, 'test row')}, which played no part in any choice, it scores {number(score)} {found}"
    return f"{text.rstrip()}{_lead(strongest(results))}.{_doubt(results.intervals.test_score)}"


def _lead(baseline: BaselineScores | None) -> str:
    """How the best probe compares with the strongest baseline."""
    if baseline is None or baseline.test_score is None:
        return ""
    text = f", against {number(baseline.test_score)} for the strongest baseline, {one_line(baseline.title)}"
    difference = baseline.difference
    if difference is None or difference.estimate is None:
        return text
    return f"{text} (lead {difference.estimate:+.3f} {interval(ends_of(difference))})".replace(" )", ")")


def _why_no_test(results: SavedFiles) -> str:
    cells = results.cells
    layer, position = results.best_cell or (None, None)
    reasons = cells.loc[(cells["layer"] == layer) & (cells["position"] == position), "reason"].dropna()
    return f": {reasons.iloc[0]}" if len(reasons) else ""


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
