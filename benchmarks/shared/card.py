"""The device that a benchmark runs on: its name, what a reader must know of it, its memory, its peak in bfloat16.

``python -m benchmarks.shared.card DEVICE`` prints the name as files have it.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

# Operations per second of dense bfloat16 products, from the vendor's data sheets. By exact names: what only a part of a
# card is, or a slower sibling, is measured.
_BF16_PEAKS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
_SIDE, _CPU_SIDE = 8192, 512
_N_PRODUCTS = 20
_MIB = 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class Peak:
    """Operations per second that a device can do in bfloat16, and where the number is from."""

    per_s: float
    origin: str


@dataclass(frozen=True)
class CardMemory:
    """Bytes of a card: foretold, and the most that tensors had at once."""

    foretold_nbytes: int
    measured_nbytes: int

    @property
    def ratio(self) -> float:
        """Measured by foretold."""
        return self.measured_nbytes / self.foretold_nbytes

    def row(self) -> Mapping[str, str]:
        """Figures of a table."""
        return {
            "foretold, MiB": f"{self.foretold_nbytes / _MIB:.0f}",
            "measured, MiB": f"{self.measured_nbytes / _MIB:.0f}",
            "measured / foretold": f"{self.ratio:.2f}",
        }


def watch_cards(devices: Sequence[torch.device], action: Callable[[], T]) -> tuple[int | None, T]:
    """Run something and see what it takes of a card; of several, the one of which it takes most.

    Returns
    -------
    tuple of int or None, and T
        The most bytes that tensors had at once beyond those before (``torch.cuda.max_memory_allocated``), None on a
        CPU, where torch does not count; and what the action returned.
    """
    cards = [device for device in devices if device.type == "cuda"]
    for card in cards:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(card)
    before = [torch.cuda.memory_allocated(card) for card in cards]
    found = action()
    taken = [torch.cuda.max_memory_allocated(card) - held for card, held in zip(cards, before, strict=True)]
    return max(taken, default=None), found


def device_name(device: str | torch.device) -> str:
    """What the vendor calls a card; ``cpu``."""
    where = torch.device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def device_facts(device: str | torch.device) -> dict[str, Any]:
    """What belongs in the hardware line: nothing for a CPU, which is there already."""
    where = torch.device(device)
    if where.type != "cuda":
        return {}
    gib = round(torch.cuda.get_device_properties(where).total_memory / 2**30, 1)
    return {"card": device_name(where), "card_gib": gib, "cuda": torch.version.cuda}


def bf16_peak(device: str | torch.device) -> Peak:
    """Look a card up; measure one that is not known, and a CPU."""
    known = _BF16_PEAKS.get(device_name(device))
    return _measured_peak(torch.device(device)) if known is None else Peak(known, "data sheet")


def _measured_peak(device: torch.device) -> Peak:
    """The fastest of some products of two matrices: less than a data sheet says, so that shares of it are larger."""
    side = _SIDE if device.type == "cuda" else _CPU_SIDE
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds: list[float] = []
    for _ in range(_N_PRODUCTS):
        settle(device)
        started = time.perf_counter()
        torch.mm(left, right)
        settle(device)
        seconds.append(time.perf_counter() - started)
    return Peak(2 * side**3 / min(seconds), f"measured, a product of matrices of {side} x {side}")


def settle(device: torch.device) -> None:
    """Wait until a card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(device: str) -> None:
    """Print the name of a device for files, such as ``nvidia-h200``; exit with 2 if there is none."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        print(f"device {device} cannot be used: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    print(re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-"))


if __name__ == "__main__":
    main(sys.argv[1])
