"""What a notebook does: arrays in, a result that can be looked at, saved and read back."""

import inspect
import warnings
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
import xarray

from activation_store import ActivationStore
from gpu_probes import ArrayCellSource, CellError, ProbeError, SweepOptions, sweep, sweep_labels
from gpu_probes.report import SavedResults
from probesweep import Training
from tests.helpers.commands import run
from tests.helpers.ray import write_stores

QUICK = {"k_fold": True, "n_folds": 3, "device": "cpu", "alphas": [1.0, 100.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores")
    write_stores(path)
    return path


@pytest.fixture(scope="module")
def stores(folder):
    return tuple(ActivationStore.open(folder / f"{split}.zarr") for split in ("train", "test"))


@pytest.mark.parametrize("function", [sweep, sweep_labels])
def test_signatures_name_every_option_with_its_default(function):
    shown = inspect.signature(function).parameters
    assert list(shown)[:4] == ["train", "train_labels", "test", "test_labels"]
    assert {
        name: one.default for name, one in shown.items() if name in {field.name for field in fields(SweepOptions)}
    } == {field.name: field.default for field in fields(SweepOptions)}
    with pytest.raises(TypeError, match="k_folds"):
        function(np.zeros((4, 2)), {"a": [1, 2, 3, 4]}, k_folds=True)


def test_arrays_frames_and_tensors_are_cells():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 4))
    labels = features[:, 0] + rng.normal(0, 0.1, 30)
    expected = sweep(ArrayCellSource(features[:, None, None]), labels, **QUICK)
    for given in (features, pd.DataFrame(features), torch.tensor(features), features[:, None, None], features.tolist()):
        found = sweep(given, pd.Series(labels, index=range(100, 130)), **QUICK)
        assert (found.coef == expected.coef).all()
        assert found.best == expected.best
    whole = sweep(np.round(features * 8).astype(np.int8), labels, **QUICK)
    assert np.isfinite(whole.cv_score).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 2, 2)), r"train is ndarray of shape \(4, 2, 2\) and type float64; give a store, or numbers"),
        (pd.DataFrame({"a": ["x", "y"]}), r"train is DataFrame of shape \(2, 1\) and type"),
        ("train.zarr", r"train is str of shape \(\) and type"),
        (torch.zeros(2, 2, requires_grad=True), "train is no array: Can't call numpy"),
    ],
    ids=["three axes", "text", "path", "gradient"],
)
def test_what_is_no_features(given, message):
    with pytest.raises(CellError, match=message) as caught:
        sweep(given, [0.0, 1.0])
    assert caught.value.argument == "train"


@pytest.mark.slow
def test_a_saved_sweep_is_that_of_a_training(folder, stores, tmp_path):
    train, test = stores
    result = sweep(train, train.labels["success_rate"], test, test.labels["success_rate"], **QUICK, permutations=9)
    assert result.save(tmp_path / "saved") == tmp_path / "saved"
    Training(
        folder / "train.zarr", folder / "test.zarr", tmp_path / "trained", "success_rate", k_fold=True, n_folds=3,
        device="cpu", alphas=[1.0, 100.0], permutations=9,
    ).run()  # fmt: skip
    saved, trained = (SavedResults.load(tmp_path / name) for name in ("saved", "trained"))
    pd.testing.assert_frame_equal(saved.to_frame(), trained.to_frame())
    assert saved.best == trained.best
    assert saved.evidence.nested_cv == trained.evidence.nested_cv
    assert saved.evidence.permutation == trained.evidence.permutation
    assert saved.evidence.learning_curve == trained.evidence.learning_curve
    assert list(saved.evidence.baselines) == list(trained.evidence.baselines)
    assert run("report", tmp_path / "saved").returncode == 0


@pytest.mark.slow
def test_saved_results_have_what_the_sweep_has(stores, tmp_path):
    train, test = stores
    for label, options in (("success_rate", {}), ("right", {"alphas": None})):
        given = {**QUICK, **options}
        result = sweep(train, train.labels[label], test, test.labels[label], **given)
        saved = SavedResults.load(result.save(tmp_path / label))
        xarray.testing.assert_identical(saved.to_xarray(), result.to_xarray())
        known = result.to_frame().dropna(axis="columns", how="all").select_dtypes("number").columns
        assert {"cv_score", "nested_cv_score", "certificate", "alpha"} <= set(known)
        for column in known:
            assert saved.plot.heatmap(column).to_dict()["layer"]
            assert result.plot.heatmap(column).to_dict()["layer"]
            assert saved.plot.layers(column).to_dict()["layer"]
        for plot in (saved.plot, result.plot):
            with pytest.raises(
                ProbeError, match="score='reason' is no column of numbers; give one of layer, position, "
            ):
                plot.heatmap("reason")


def test_the_nested_score_says_itself(stores):
    train, _ = stores
    result = sweep(train, train.labels["success_rate"], **QUICK)
    shown = repr(result.nested_cv).splitlines()
    assert shown[0] == f"NestedCV: score {result.nested_cv.score:.4f} over 3 folds"
    assert len(shown) == 4


@pytest.mark.slow
def test_saving_over_other_results_keeps_them(stores, tmp_path):
    train, test = stores
    given = (train, train.labels["success_rate"], test, test.labels["success_rate"])
    first = sweep(*given, **QUICK)
    first.save(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.save(tmp_path / "out")
    with pytest.warns(match=r"out held the results of another request: kept as out\.1"):
        sweep(*given, **QUICK, seed=1).save(tmp_path / "out")
    assert SavedResults.load(tmp_path / "out.1").performance.seed == 42
    assert SavedResults.load(tmp_path / "out").performance.seed == 1


@pytest.mark.slow
def test_a_sweep_without_test_rows_is_saved(stores, tmp_path):
    train = stores[0]
    result = sweep(train, train.labels["success_rate"], **QUICK)
    saved = SavedResults.load(result.save(tmp_path / "out"))
    assert saved.best.test_score is None
    assert saved.nested_score == result.nested_cv.score
    assert saved.run.request.test is None


@pytest.mark.slow
def test_results_of_other_rows_are_other_results(stores, tmp_path):
    train, _ = stores
    features, labels = train.cell(2, -1), train.labels["success_rate"]
    sweeps = [
        sweep(source, values, **QUICK, **options)
        for source, values, options in (
            (train, labels, {}),
            (train, labels[::-1].to_numpy(), {}),
            (train, labels, {"groups": np.arange(len(labels)) // 2}),
            (features, labels, {}),
            (features + 1, labels, {}),
        )
    ]
    sweeps[0].save(tmp_path / "out")
    for result in sweeps[1:]:
        with pytest.warns(match="kept as"):
            result.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", *(f"out.{n}" for n in range(1, len(sweeps)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"alphas": "1,10"},
        {"alphas": np.array([1, 10])},
        {"alphas": 10 ** np.arange(3), "seed": np.int64(3)},
        {"folds": np.arange(40) % 4},
    ],
    ids=["text", "array", "numpy", "folds"],
)
def test_whatever_a_sweep_takes_can_be_read_back(options, stores, tmp_path):
    train, test = stores
    labels = train.labels["success_rate"]
    result = sweep(train, labels, test, test.labels["success_rate"], **{**QUICK, **options})
    saved = SavedResults.load(result.save(tmp_path / "out"))
    xarray.testing.assert_identical(saved.to_xarray(), result.to_xarray())
