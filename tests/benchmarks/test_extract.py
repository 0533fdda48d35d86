"""The extraction benchmark on a tiny model: complete, and unable to pass when a contender computes something wrong."""

import json
import time
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from activation_store.capture.batches import shared_prefix
from activation_store.capture.hidden_states import HiddenStates
from benchmarks.__main__ import main
from benchmarks.extract import larger, memory, methods, speed, suite
from benchmarks.extract.agreement import check_agreement
from benchmarks.extract.large import Large, batch_limit, operations
from benchmarks.extract.larger import Larger
from benchmarks.extract.subject import Subject
from benchmarks.shared import prompts as sets
from benchmarks.shared.card import CardMemory
from benchmarks.shared.measure import Limit, Spread, WrongResultError
from benchmarks.shared.process import Usage, watch

pytestmark = pytest.mark.slow

TINY = suite.Size(
    embedded_rows=20,
    skewed_rows=20,
    median_tokens=40,
    longest_tokens=200,
    prefix_rows=6,
    prefix_mean_tokens=40,
    few_layers="0-1",
    layers_rows=10,
    memory_rows=32,
    memory_shard_samples=1,
    memory_rounds=2,
    n_rounds=2,
    larger=Larger(3, 16, 2, store_nbytes=2**18, limit_nbytes=2**32, shard_samples=100),
    large=Large(3, 32, 48, 4, 2, 2100, n_rows=24, median_tokens=60, longest_tokens=200, n_rounds=2),
)


@pytest.fixture(scope="module")
def subject(tiny_model) -> Subject:
    return Subject.load(str(tiny_model("llama")))


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its own process is taken back."""
    values = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for name, value in {**values, "ARROW_DEFAULT_MEMORY_POOL": "system"}.items():
        monkeypatch.setenv(name, value)


def test_quick_run_prints_and_writes_every_table_and_target(
    tmp_path: Path, tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "QUICK", TINY)
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["extract", "--quick", "--folder", str(work), "--model", str(tiny_model("llama"))]
    result = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    assert not list(work.iterdir())
    figures = json.loads((tmp_path / "figures.json").read_text())
    race = [speed.ORIGINAL, speed.OURS, speed.BARE]
    layers = [speed.ALL_LAYERS, "--layers 0-1"]
    reuse = [speed.NOT_REUSED, speed.REUSED]
    peaks = [speed.ORIGINAL] * 4 + [speed.OURS] * 4
    commands = [larger.EXTRACT, larger.EXTRACT_TEST, larger.TRAIN]
    assert [[next(iter(row.values())) for row in table["rows"]] for table in figures["tables"]] == [
        *[race, race, layers, reuse, reuse, reuse, peaks, commands]
    ]
    assert all(table["title"] in result.output for table in figures["tables"])
    spreads = [cell for table in figures["tables"] for row in table["rows"] for cell in row.values() if "low" in cell]
    assert len(spreads) == 2 * 3 * 4 + 4 * 2 * 3 + 8 * 2
    assert all(0 < cell["low"] <= cell["median"] <= cell["high"] for cell in spreads)
    assert len(figures["targets"]) == 2 * 2 + 1 + 3 + 1 + 1
    assert all(target["what"] in result.output for target in figures["targets"])
    assert figures["targets"][-1]["is_met"], result.output


def test_a_large_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "QUICK", TINY)
    given = ["extract", "--quick", "--part", "large-model", "--folder", str(tmp_path)]
    result = CliRunner().invoke(main, [*given, "--json", str(tmp_path / "figures.json")])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    (table,) = figures["tables"]  # of memory torch tells nothing on a CPU
    assert [row["contender"] for row in table["rows"]] == [speed.ORIGINAL, speed.OURS, speed.BARE]
    for row in table["rows"]:
        work, peak = (float(figures["setting"][name].split(",")[0]) for name in ("operations", PEAK))
        assert row["% of peak"]["median"] == pytest.approx(100 * work / peak / row["s"]["median"], rel=0.3)
    assert 0 <= float(figures["setting"]["random model: largest difference, of the vector's length"]) < 0.1


PEAK = "peak in bfloat16, operations/s"


def test_operations_are_those_that_torch_counts(tiny_model) -> None:
    subject = Subject.load(str(tiny_model("llama")))
    subject.model.set_attn_implementation("eager")  # the products of others are not all counted
    prompts = [np.arange(3, 3 + length) for length in (40, 90)]
    counted = 0
    for prompt in prompts:
        with FlopCounterMode(display=False) as counter:
            subject.decoder(input_ids=torch.from_numpy(prompt)[None], use_cache=False)
        counted += counter.get_total_flops()
    # torch counts all of attention's square, of which a causal model needs half and the diagonal, and rotary angles.
    lengths = np.array([len(prompt) for prompt in prompts])
    square, needed = (lengths**2).sum(), (lengths * (lengths + 1) // 2).sum()
    per_pair = 4 * subject.n_blocks * subject.n_features
    assert operations(subject, lengths) == pytest.approx(counted - per_pair * (square - needed), rel=1e-3)


def test_a_batch_may_take_what_is_left_free_for_it() -> None:
    assert [batch_limit(CardMemory(100, taken)).is_met for taken in (50, 200, 210)] == [True, True, False]


def test_a_device_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["extract", "--quick", "--device", "cuda:99", "--folder", str(tmp_path)])
    assert result.exit_code == 2
    assert "--device: device='cuda:99' cannot be used" in result.output


def race(subject: Subject, folder: Path) -> speed.Race:
    return speed.race_original(subject, sets.embedded_questions()[:20], folder, n_rounds=1)


def test_contenders_agree(subject: Subject, tmp_path: Path) -> None:
    found = race(subject, tmp_path)
    assert list(found.timings.seconds) == [speed.ORIGINAL, speed.OURS, speed.BARE]
    assert 0 < found.difference < 1e-4


def test_an_original_that_pads_on_the_left_agrees_too(subject: Subject, tmp_path: Path) -> None:
    left = Subject.load(subject.model.name_or_path)
    left.tokenizer.padding_side = "left"
    assert race(left, tmp_path).difference < 1e-4


def off_by_one(real):
    return lambda mask, n_positions: real(mask, n_positions) - 1


def swapped(block):
    return np.ascontiguousarray(block[:, [1, 0, *range(2, block.shape[1])]])


def shifted_rows(block):
    return np.roll(block, 1, axis=0)


def nudged(block):
    return block * np.float32(1.001)


def changed(change):
    """What wraps `HiddenStates.start` so that its values are changed."""

    def wrap(real):
        def start(self, prompts):
            wait = real(self, prompts)
            return lambda: change(wait())

        return start

    return wrap


def last_batch_left_out(real):
    return lambda *args: list(real(*args))[:-1]


def of_other_prompts(real):
    return lambda *args: ((rows, hidden.flip(0)) for rows, hidden in real(*args))


@pytest.mark.parametrize(
    ("where", "name", "wrong", "who"),
    [
        (methods, "last_tokens", off_by_one, "ours"),
        (HiddenStates, "start", changed(swapped), "ours"),
        (HiddenStates, "start", changed(shifted_rows), "ours"),
        (HiddenStates, "start", changed(nudged), "ours"),
        (speed, "run_bare", last_batch_left_out, "bare forward pass"),
        (speed, "run_bare", of_other_prompts, "bare forward pass"),
    ],
)
def test_a_contender_that_computes_something_wrong_is_refused(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where, name, wrong, who
) -> None:
    monkeypatch.setattr(where, name, wrong(getattr(where, name)))
    with pytest.raises(WrongResultError, match=who):
        race(subject, tmp_path)


def test_fewer_layers_that_are_others_are_refused(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Subject.states
    monkeypatch.setattr(
        Subject, "states", lambda self, positions, layers: real(self, positions, "1-2" if layers == "0,1" else layers)
    )
    with pytest.raises(WrongResultError, match="--layers 0-1"):
        speed.race_layers(subject, sets.embedded_questions()[:5], tmp_path, "0-1", n_rounds=1)


def test_prefix_contenders_agree_and_share_what_is_asked_for(subject: Subject, tmp_path: Path) -> None:
    for share in suite.SHARES:
        prompts = sets.sharing_prompts(subject.tokenizer, 8, share, mean_tokens=60, n_positions=2)
        assert shared_prefix(prompts.token_ids, prompts.starts, 2) == round(60 * share)
        assert abs(prompts.n_tokens.mean() - 60) < 1
    found = speed.race_prefix(subject, prompts, tmp_path, n_rounds=1)
    assert list(found.timings.seconds) == [speed.NOT_REUSED, speed.REUSED]
    assert found.difference < 1e-4


def test_skewed_prompts_have_the_lengths_that_are_asked_for(subject: Subject) -> None:
    questions = sets.skewed_questions(subject.tokenizer, 96, median_tokens=60, longest_tokens=200)
    lengths = np.sort(subject.encode(questions).n_tokens)
    assert abs(np.median(lengths) - 60) <= 3
    assert abs(lengths[-1] - 200) <= 3
    assert lengths.mean() > 1.1 * np.median(lengths)
    assert questions == sets.skewed_questions(subject.tokenizer, 96, median_tokens=60, longest_tokens=200)


def hold(ready, n_before: int, n_after: int) -> None:
    kept = [np.ones(n_before, dtype=np.uint8)]
    ready()
    kept.append(np.ones(n_after, dtype=np.uint8))
    print(f"holds {sum(map(len, kept))}")
    time.sleep(0.1)


def test_a_process_is_measured_from_when_it_is_ready(tmp_path: Path) -> None:
    usage = watch(hold, 2**20, 2**27, log=tmp_path / "log")
    assert usage.exit_code == 0
    assert usage.message == f"holds {2**20 + 2**27}"
    assert abs(usage.peak_nbytes - usage.ready_nbytes - 2**27) < 2**23


def test_a_process_over_its_limit_fails_and_says_so(tmp_path: Path) -> None:
    usage = watch(hold, 2**20, 2**40, log=tmp_path / "log", limit_nbytes=2**32)
    assert usage.exit_code == 1
    assert "Unable to allocate" in usage.message


def test_a_command_that_fails_under_the_limit_misses_the_target(tmp_path: Path) -> None:
    small = replace(TINY.larger, limit_nbytes=2**27)
    used = larger.measure_larger(small, tmp_path)
    assert not larger.larger_target(small, used).is_met
    assert "failed with" in str(larger.larger_table(small, used))


def test_growth_is_told_from_noise() -> None:
    # Bytes of the peak by rows of 10 bytes: half a byte for each, and two processes that differ by 2.
    def used(slope: float) -> dict[tuple[str, int], list[Usage]]:
        return {
            ("ours", n): [Usage(0, round(1000 + slope * 10 * n + off), 0, "") for off in (-1, 1)]
            for n in (10, 20, 40, 80)
        }

    growth = memory.Growth.of(used(0.5), "ours", 10)
    assert growth.slope == pytest.approx(0.5)
    # By hand: residuals of 1 at 8 points, 6 degrees of freedom, squared deviations of the bytes.
    deviations = np.repeat([100, 200, 400, 800], 2) - 375
    assert growth.standard_error == pytest.approx((8 / 6 / np.square(deviations).sum()) ** 0.5)
    assert not memory.memory_limit(used(0.5), 10).is_met
    assert memory.memory_limit(used(0.0), 10).is_met


@pytest.mark.parametrize("bad", [0.4, np.nan])
def test_vectors_of_16_bits_that_differ_by_more_than_rounding_are_refused(bad: float) -> None:
    values = np.random.default_rng(0).standard_normal((600, 2, 3, 50), dtype=np.float32)
    expected = values.astype(ml_dtypes.bfloat16)
    assert 1e-3 < check_agreement((values * np.float32(1.01)).astype(ml_dtypes.bfloat16), expected, "it") < 0.03
    found = values.copy()
    found[599, 1, 2] *= 1 + np.float32(bad)
    with pytest.raises(WrongResultError, match=r"it is off by .* of its vector's length"):
        check_agreement(found.astype(ml_dtypes.bfloat16), expected, "it")


@pytest.mark.parametrize("bad", [2e-3, np.nan])
def test_values_that_differ_by_more_than_rounding_are_refused(bad: float) -> None:
    expected = np.random.default_rng(0).standard_normal((4, 2, 3, 50), dtype=np.float32)
    assert check_agreement(expected + np.float32(1e-6), expected, "it") < 1e-5
    expected[:, 1] *= 1000  # each layer is measured by itself
    found = expected.copy()
    found[2, 0, 1, 7] += bad
    with pytest.raises(WrongResultError, match="it is off by"):
        check_agreement(found, expected, "it")


def test_a_limit_is_met_from_below() -> None:
    assert Limit("cost", 0.45, Spread(0.45, 0.3, 0.9)).is_met
    assert not Limit("cost", 0.45, Spread(0.46, 0.3, 0.9)).is_met
