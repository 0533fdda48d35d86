#!/usr/bin/env bash
# All that needs a card, on a machine that has one NVIDIA card, torch and transformers in its python3, and no network:
# the tests that need it, then the benchmarks job and extract. How to carry the wheels: docs/benchmarks.md.
#
#   bash benchmarks/on_gpu.sh --wheels                  print what else is needed, as pip takes it
#   bash benchmarks/on_gpu.sh [--find-links DIR] [--out DIR] [--parts tests,job,extract]
#   bash benchmarks/on_gpu.sh --quick --python PYTHON   a dry run on the CPU, with an interpreter that has everything
set -euo pipefail

# Most seconds of each part. With what is granted to end after that, they make less than nine minutes.
declare -A limit=(
  [device]=30
  [install]=45
  [tests]=70
  [job]=205
  [extract]=160
)
grace=5

# What this project, its tests and the two benchmarks import, with all that these need, and without what torch or
# transformers bring along: nothing of the machine's is replaced. Some versions of these bring no pydantic, or
# setuptools that are too old to install this project.
wheels="annotated-types beartype click cloudpickle donfig google-crc32c himalaya hypothesis iniconfig jaxtyping joblib
  ml_dtypes narwhals numcodecs obstore pandas pluggy psutil pyarrow pydantic pydantic_core Pygments pytest
  python-dateutil scikit-learn scipy setuptools sortedcontainers threadpoolctl typing-inspection tzdata
  wadler_lindig xarray zarr"

fail() {
  echo "on_gpu.sh: $1" >&2
  exit 2
}

root=$(realpath "$(dirname "$0")/..")
requirements() {
  for name in $wheels; do grep "^$name==" "$root/constraints.txt"; done
}

out="$root/benchmarks/results" links="$root/wheels" python="" device=cuda quick=() parts="tests job extract"
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) requirements && exit ;;
    --quick) quick=(--quick) device=cpu ;;
    --out | --find-links | --python | --parts)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case $1 in
        --out) out=$(realpath -ms "$2") ;;
        --find-links) links=$(realpath -ms "$2") ;;
        # As it is named: the link in a virtual environment tells whose packages are meant.
        --python)
          python=$(command -v "$2") || fail "--python $2: there is no such program"
          python=$(realpath -ms "$python") ;;
        --parts) parts=${2//,/ } ;;
      esac
      shift ;;
    *) fail "$1 is unknown; there are --wheels, --quick, --python, --find-links, --out and --parts" ;;
  esac
  shift
done
for part in $parts; do
  [[ $part =~ ^(tests|job|extract)$ ]] || fail "--parts $part: there are tests, job and extract"
done
[ -n "${parts// /}" ] || fail "--parts names none; there are tests, job and extract"
[ -n "$python" ] || [ -d "$links" ] ||
  fail "--find-links $links: there is no such folder; --wheels says what belongs in it"
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || fail "--out $out: no folder that can be written to"
cd "$root"
# What a part printed before its time was up is in the log.
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# The machine's own torch knows the card: what is wrong there shows before anything is installed.
name=$(timeout --kill-after=$grace "${limit[device]}" "${python:-python3}" -m benchmarks.shared.card $device 2>&1) ||
  fail "$(tail -n 1 <<<"${name:-torch has not answered in ${limit[device]} s}")"
name=$(tail -n 1 <<<"$name")${quick:+-quick}

summary=() failed=0
run() {  # a part, and its command
  local part=$1 status=0 began=$SECONDS outcome=done
  shift
  echo "== $part, at most ${limit[$part]} s"
  timeout --kill-after=$grace "${limit[$part]}" "$@" || status=$?
  case $status in
    0) ;;
    124 | 137) outcome="not done in ${limit[$part]} s" ;;
    *) outcome="failed with $status" ;;
  esac
  [ $status = 0 ] || failed=1
  summary+=("$part: $outcome, $((SECONDS - began)) s")
  return $status
}

install() {
  python3 -m venv --system-site-packages .venv-gpu
  # Where python3 is of a virtual environment itself, that option leaves out what is installed there.
  python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$(echo .venv-gpu/lib/python3*/site-packages)/python3.pth"
  requirements | .venv-gpu/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-index \
    --find-links "$links" -r /dev/stdin
  # The project itself, for its version and the data type that it gives to zarr-python.
  .venv-gpu/bin/pip install --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation -e .
  .venv-gpu/bin/python -c 'import torch, transformers
for library in (torch, transformers): print(library.__version__, library.__file__)'
}
export -f install requirements
export wheels root links

main() {
  if [ -z "$python" ]; then
    python="$root/.venv-gpu/bin/python"
    run install bash -euo pipefail -c install || parts=""
  fi
  for part in $parts; do
    case $part in
      # A line for each test, which is there though time runs out; shapes are checked where there is more of it.
      tests) run tests "$python" -m pytest -vv -m cuda -p no:cacheprovider --jaxtyping-packages= tests/cuda ;;
      job) run job "$python" -m benchmarks job "${quick[@]}" --device $device --json "$out/job-$name.json" ;;
      extract)
        run extract "$python" -m benchmarks extract --part large-model "${quick[@]}" --device $device \
          --json "$out/extract-$name.json" ;;
    esac || true
  done
  echo "== on $name, written to $out:"
  printf '%s\n' "${summary[@]}"
  return $failed
}
main 2>&1 | tee "$out/on-gpu-$name.log"
