"""Small result folders as `probesweep train` leaves them, and strings that attack whoever shows them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpu_probes import About, ArrayCellSource, SweepOptions, SweepResult, infer, sweep
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import combine
from gpu_probes.results.folder import Request, Run, UsedStore, hash_files
from gpu_probes.results.inference import Overlap
from gpu_probes.results.saving import save_sweep
from probesweep.use.card import describe_probe

N_TRAIN, N_TEST = 48, 24
LAYERS, POSITIONS = [0, 1, 2, 5], [-3, -2, -1]

_ASKED = (
    *("task_type", "probe", "alpha", "fit_intercept", "standardize", "k_fold", "n_folds", "seed"),
    *("permutations", "permutation_statistic", "nested_cv"),
)
_RUN = "window.__xss=1"
ATTACKS = [
    f"</script><script>{_RUN}</script>",
    f"</SCRIPT ><script>{_RUN}</script>",
    f"--></script><!--<script>{_RUN}</script>",
    f"<img src=x onerror={_RUN}>",
    f'"><img src=x onerror="{_RUN}">',
    f"'><svg onload={_RUN}>",
    f"<svg><script>{_RUN}</script></svg>",
    f"<svg><animate onbegin={_RUN} attributeName=x dur=1s>",
    f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe>",
    f'<a href="javascript:{_RUN}" autofocus onfocus={_RUN}>x</a>',
    f"javascript:{_RUN}",
    f"data:text/html,<script>{_RUN}</script>",
    f"<meta http-equiv=refresh content='0;url=javascript:{_RUN}'>",
    f"<base href='https://evil.example/'><link rel=stylesheet href=x onerror={_RUN}>",
    f"<style>@import 'https://evil.example/x.css';</style><body onload={_RUN}>",
    f"<details open ontoggle={_RUN}>",
    f"</title></style></textarea><script>{_RUN}</script>",
    "{{7*7}}{% raw %}{{ self.__init__.__globals__ }}",
    "${7*7}#{7*7}<%= 7*7 %>",
    f"datum['x']; {_RUN}; //",
    f'" + ({_RUN}) + "',
    f"'); {_RUN}; ('",
    f'{{"signal": "{_RUN}"}}',
    f"\u2028{_RUN}\u2029",
    "\x00\x07\x1b[31m\x7f\x85\ufffe\u202eevil\u202c",
    "lone \ud800 surrogate",
    "&lt;script&gt; &amp; &#60;b&#62;",
]


class _Names:
    """The same cells under other names, as joined cells have them."""

    def __init__(self, source: CellSource, layers: list[Any], positions: list[Any]) -> None:
        self._source, self.layers, self.positions = source, tuple(layers), tuple(positions)
        self.n_samples, self.n_features = source.n_samples, source.n_features

    def cell_blocks(self, layer: Any, position: Any) -> Any:
        at = self._source.layers[self.layers.index(layer)], self._source.positions[self.positions.index(position)]
        return self._source.cell_blocks(*at)


def features(n_samples: int, seed: int) -> np.ndarray:
    """Activations whose first feature of layer 2 tells the label; layer 0 is constant."""
    values = np.random.default_rng(seed).standard_normal((n_samples, len(LAYERS), len(POSITIONS), 5))
    values[:, 0] = 1.0
    return values


def labels_of(values: np.ndarray, n_classes: int | None) -> np.ndarray:
    """Numbers or classes that go with the features, not perfectly."""
    numbers = values[:, 2, 1, 0] + 0.5 * values[:, 1, 0, 1]
    if n_classes is None:
        return numbers
    return np.digitize(numbers, np.quantile(numbers, np.linspace(0, 1, n_classes + 1)[1:-1])) * 1.0


def write_results(
    folder: Path,
    *,
    n_classes: int | None = None,
    label: str = "success_rate",
    names: tuple[list[Any], list[Any]] | None = None,
    join: str | None = None,
    tokens: list[str | None] | None = None,
    train: np.ndarray | None = None,
    baselines: tuple[str, ...] = ("prompt_length",),
    test: bool = True,
    constant_test_labels: bool = False,
    with_inference: bool = True,
    train_path: str = "/stores/train.zarr",
    model: str = "a model",
    dataset: str | None = None,
    asked_beside: dict[str, Any] | None = None,
    prompts: tuple[list[str], list[str]] | None = None,
    **options: Any,
) -> SweepResult:
    """Train as the command does, on small made-up activations, and write what it writes."""
    arrays = (features(N_TRAIN, 1) if train is None else train, features(N_TEST, 2))
    labels = [labels_of(array, n_classes) for array in arrays]
    if constant_test_labels:
        labels[1] = np.zeros(N_TEST)
    sources: list[Any] = [ArrayCellSource(array, layers=LAYERS, positions=POSITIONS) for array in arrays]
    if names is not None:
        sources = [_Names(source, *names) for source in sources]
    sources = [combine(source, join) for source in sources]
    given = SweepOptions(**{"k_fold": True, "device": "cpu", "alphas": [0.1, 1.0, 10.0], "n_folds": 3} | options)
    tested = (sources[1], labels[1]) if test else ()
    result = sweep(sources[0], labels[0], *tested, **vars(given))
    files = save_sweep(result, folder)
    if with_inference and test:
        numbers = {name: (np.arange(N_TRAIN) % 7.0, np.arange(N_TEST) % 5.0) for name in baselines}
        texts = {} if prompts is None else {"train_prompts": prompts[0], "test_prompts": prompts[1]}
        found = infer(result, *sources, given, About(numbers=numbers, **texts))
        replace(found, overlap=Overlap(n_shared=0, rows=(), dropped=False)).save(folder)
        files = [*files, "inference.json"]
        card = describe_probe(label, result, found, None, join)
        if card is not None:
            card.save(folder)
            files = [*files, "probe.json"]
    asked = {name: getattr(given, name) for name in _ASKED} | {"alphas": given.alphas and list(given.alphas)}
    asked |= {"join": join, "weight_column": None, "groups": None, "split_repeats": False, "drop_overlap": False}
    Run(
        # Folders of the first format need not hold all parts.
        format_version=2 if "inference.json" in files else 1,
        request=Request(
            probesweep="0.1.0",
            train=UsedStore(train_path, N_TRAIN, "abc"),
            test=UsedStore("/stores/test.zarr", N_TEST, "def") if test else None,
            labels=[label],
            options=asked | (asked_beside or {}),
        ),
        label=label,
        model=model,
        weights="sha256 0",
        position_tokens=["<|im_start|>", "assistant", "\n"] if tokens is None else tokens,
        files=hash_files(folder, files),
        dataset=dataset,
    ).save(folder)
    return result


def sign(folder: Path) -> None:
    """Take files that a test has changed for what training wrote."""
    run = Run.load(folder)
    replace(run, files=hash_files(folder, run.files)).save(folder)
