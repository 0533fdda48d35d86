import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import COMMANDS, main
from benchmarks.shared.measure import Contender, Spread, Timings, WrongResultError, check_equal, interleave
from benchmarks.store import command, reading, writing
from benchmarks.store.data import DTYPES, Size

TINY = Size(
    n_layers=3,
    n_positions=2,
    n_features=16,
    shard_nbytes=64 * 2**10,
    n_shards=2,
    n_rounds=2,
    n_slow_rounds=2,
    slice_samples=7,
    n_slices=2,
)
WRITERS = [writing.OURS, writing.PLAIN, writing.ZARR, writing.TENSORSTORE]
CELL_READERS = [
    *[reading.UNVERIFIED, reading.FIRST_TOUCH, reading.VERIFIED, reading.ZARR, reading.TENSORSTORE],
    *[reading.RUNS, reading.RUNS_MAPPED, reading.SAMPLE_MAJOR],
]
SEQUENCE_READERS = [reading.UNVERIFIED, reading.FIRST_TOUCH, reading.ZARR, reading.ZARR_SHARDS]
SLICE_READERS = [reading.UNVERIFIED, reading.FIRST_TOUCH, reading.ZARR, reading.SAMPLE_MAJOR]


@pytest.mark.slow
def test_quick_run_prints_and_writes_every_table_and_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)
    work = tmp_path / "work"
    work.mkdir()
    result = CliRunner().invoke(
        main, ["store", "--quick", "--folder", str(work), "--json", str(tmp_path / "figures.json")]
    )
    assert result.exit_code == 0, result.output
    assert not list(work.iterdir())
    figures = json.loads((tmp_path / "figures.json").read_text())
    expected = [WRITERS, CELL_READERS, SEQUENCE_READERS, SLICE_READERS] * len(DTYPES)
    assert [[row["contender"] for row in table["rows"]] for table in figures["tables"]] == expected
    assert all(table["title"] in result.output for table in figures["tables"])
    for row in (row for table in figures["tables"] for row in table["rows"]):
        assert len(row) == 4
        assert all(0 < row[key]["low"] <= row[key]["median"] <= row[key]["high"] for key in row if key != "contender")
    assert len(figures["targets"]) == 5 * len(DTYPES)
    assert all(target["what"] in result.output for target in figures["targets"])
    assert {"cpu", "cores", "ram_gib", "filesystem", "zarr", "tensorstore"} <= set(figures["hardware"])


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "QUICK", Size(1, 1, 1, 2**60, 1, 1, 1, 1, 1))
    result = CliRunner().invoke(main, ["store", "--quick", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert "GB free" in result.output
    assert not list(tmp_path.iterdir())


def test_help_lists_the_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert all(name in result.output for name in COMMANDS)


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        def prepare(round_idx: int):
            calls.append(f"prepare {name}{round_idx}")
            return lambda: calls.append(f"run {name}{round_idx}")

        return Contender(name, prepare, lambda round_idx: calls.append(f"check {name}{round_idx}"))

    timings = interleave([contender("a"), contender("b")], n_rounds=2, n_bytes=1)
    turns = [
        f"{step} {name}{round_idx}" for round_idx in range(3) for name in "ab" for step in ("prepare", "run", "check")
    ]
    assert calls == turns
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]


def test_ratios_are_taken_within_a_round() -> None:
    timings = Timings(seconds={"ours": [1.0, 10.0, 2.0], "base": [2.0, 20.0, 2.0]}, n_bytes=10**9)
    assert timings.ratio("ours", "base") == Spread(median=2.0, low=1.0, high=2.0)
    assert timings.speed("ours") == Spread(median=0.5, low=0.1, high=1.0)


@pytest.mark.parametrize(
    "found", [np.array([0.0, 1.0]), np.array([-0.0, 1.0], dtype=np.float32), np.zeros(3, np.float32)]
)
def test_a_result_that_differs_in_a_bit_is_refused(found: np.ndarray) -> None:
    expected = np.array([0.0, 1.0], dtype=np.float32)
    check_equal(expected.copy(), expected, "the copy")
    with pytest.raises(WrongResultError, match="ours"):
        check_equal(found, expected, "ours")
