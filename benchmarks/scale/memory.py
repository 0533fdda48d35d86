"""Peak memory of a training on stores in an object store, larger than that memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.scale.stores import LABEL, Size, bucket, write_store
from benchmarks.shared.measure import Limit, Spread, Table

FULL, QUICK = Size(29, 1000, 32, 2, 576), Size(4, 120, 32, 2, 576)
LIMIT_NBYTES = 3 * 2**29
_BUDGET_GIB = 0.5


def measure_memory(size: Size) -> tuple[Table, list[Limit]]:
    """Train in a process of its own; the most memory that it had, files that are mapped included."""
    with bucket() as address, tempfile.TemporaryDirectory() as folder:
        stores = [f"{address}/{name}.zarr" for name in ("train", "test")]
        write_store(stores[0], size)
        write_store(stores[1], Size(1, 200, size.n_layers, size.n_positions, size.n_features))
        command = [sys.executable, "-m", __name__, *stores, str(Path(folder) / "results")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    begin, peak = (Spread.of([found[name] / 2**20]) for name in ("begin", "peak"))
    row = {"store, MiB": f"{size.nbytes / 2**20:,.0f}", "with its imports, MiB": begin, "at most, MiB": peak}
    limit = Limit("peak memory of a training, MiB", LIMIT_NBYTES / 2**20, peak)
    return Table("memory of `train` on stores in an object store (VmHWM)", [row]), [limit]


def _peak_nbytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _train(train: str, test: str, output_dir: str) -> None:
    from probesweep.training import Training

    begin = _peak_nbytes()
    Training(train, test, output_dir, LABEL, k_fold=False, budget_gib=_BUDGET_GIB).run()
    sys.stdout.write(json.dumps({"begin": begin, "peak": _peak_nbytes()}) + "\n")


if __name__ == "__main__":
    _train(*sys.argv[1:])
