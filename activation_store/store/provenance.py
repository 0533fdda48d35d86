"""Versions of the libraries that made a store."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str | None]:
    """Versions of libraries that affect the values, for a store's provenance."""
    return {name: _version(name) for name in ("probesweep", "torch", "transformers", "tokenizers", "zarr")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
