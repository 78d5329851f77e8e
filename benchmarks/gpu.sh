#!/usr/bin/env bash
# What to measure in the first hour on a GPU: training steps at 128 and 512 tokens against their peers, each switch,
# the time by kinds of kernels, and a whole run. Writes OUTPUT/results.jsonl, OUTPUT/results.md and a log of each part.
#
#   benchmarks/gpu.sh [name=value ...]      such as: benchmarks/gpu.sh output=gpu-results python=.venv/bin/python
#
# Steps need torch and transformers alone; the run is left out where Ray is not installed. A part that fails is named,
# and the others go on. The script itself is tried without a GPU by:
#
#   benchmarks/gpu.sh device=cpu shape=mini lengths="16 32" step_tokens=64 peer_tokens=64 rounds=1 \
#     run_settings="optim.num_steps=4 optim.global_batch_size=16 eval.num_rows=16"
set -uo pipefail

output=gpu-results python=python3 device=cuda shape=bert-base
lengths="128 512"    # tokens per row; the last one is that of the switches
step_tokens=32768    # in a step of ours
peer_tokens=8192     # in a step next to the peers, which hold all logits
rounds=5             # of ten steps each on a GPU
run_settings=""      # more settings of the run
for argument in "$@"; do
  case "$argument" in
    output=*|python=*|device=*|shape=*|lengths=*|step_tokens=*|peer_tokens=*|rounds=*|run_settings=*)
      declare "$argument" ;;
    *) echo "unknown: $argument; expected name=value, see the head of $0" >&2; exit 2 ;;
  esac
done

cd "$(dirname "$0")/.."
mkdir -p "$output"
results=$output/results.jsonl
: > "$results"
failed=()
longest=${lengths##* }

# part NAME COMMAND...: keep the output; its last line is one JSON object.
part() {
  local name=$1 log="$output/$1.log"
  shift
  echo "== $name"
  if "$@" > "$log" 2>&1 && tail -n 1 "$log" | grep -q '^{'; then
    tail -n 1 "$log" | sed "s/^{/{\"part\": \"$name\", /" >> "$results"
  else
    failed+=("$name")
    echo "   failed: $(tail -n 1 "$log" | cut -c 1-200)"
  fi
}

# step NAME TOKENS TOKENS_PER_STEP OPTION...
step() {
  local name=$1 tokens=$2 per_step=$3
  shift 3
  part "$name" "$python" benchmarks/step.py --device "$device" --shape "$shape" --tokens "$tokens" \
    --rows $((per_step / tokens)) --steps "$rounds" "$@"
}

for tokens in $lengths; do
  step "ours-$tokens" "$tokens" "$step_tokens" --variants "ours (masked)" "ours (all)" --profile
  step "peers-$tokens" "$tokens" "$peer_tokens"
done

masked=(--variants "ours (masked)" --profile)
for dropout in 0 0.0625 0.125; do
  step "attention-dropout-$dropout" "$longest" "$step_tokens" "${masked[@]}" --attention-dropout "$dropout"
done
step "no-compile" "$longest" "$step_tokens" "${masked[@]}" --no-compile
step "no-half-layer-norms" "$longest" "$step_tokens" "${masked[@]}" --without half-layer-norms
step "no-padded-decoder" "$longest" "$step_tokens" "${masked[@]}" --without padded-decoder
for precision in fp16 fp32; do
  step "$precision" "$longest" "$step_tokens" "${masked[@]}" --precision "$precision"
done
step "half-the-rows" "$longest" $((step_tokens / 2)) "${masked[@]}"
step "twice-the-rows" "$longest" $((step_tokens * 2)) "${masked[@]}"

whole_run() {
  local use_gpu=false
  [[ $device == cuda ]] && use_gpu=true
  # shellcheck disable=SC2086
  "$python" -m distil_ray.train --config configs/quickstart.yaml run.name=gpu run.storage_path="$output/runs" \
    runtime.use_gpu=$use_gpu runtime.num_workers=1 runtime.micro_batch_size=null $run_settings &&
    "$python" benchmarks/gpu_table.py --run "$output/runs/gpu"
}
if "$python" -c "import ray" 2> "$output/ray.log"; then
  rm -rf "$output/runs"
  part "run" whole_run
else
  echo "== run: left out, Ray is not installed"
fi

"$python" benchmarks/gpu_table.py --results "$results" --failed "${failed[@]}" > "$output/results.md"
cat "$output/results.md"
[[ ${#failed[@]} -eq 0 ]]
