import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.predict.suite import TRANSFORMERS, of_size


@pytest.mark.slow
def test_quick_run_compares_calls_of_every_size(tiny_model, tmp_path: Path) -> None:
    given = ["predict", "--quick", "--model", str(tiny_model("llama")), "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    names = [row["contender"] for row in figures["tables"][0]["rows"]]
    assert names == [TRANSFORMERS, *map(of_size, (1, 2, 8, 16, 20))]
    assert all(target["what"] in result.output for target in figures["targets"])
