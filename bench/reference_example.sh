#!/usr/bin/env bash
# The reference's CPU example, and one rank with all threads on the same batch: tokens/s of each (the median that a run
# prints), their ratio, and the most memory that all ranks held together (the sum of their proportional set sizes, looked
# at twice a second). Takes about two minutes on two cores and 16 GB; nothing is kept.
#
#   bench/reference_example.sh [PATH OF picotron]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly picotron=${1:-build/picotron}
[[ -x $picotron ]] || { echo "error: $picotron is not there; ./run build makes it" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

readonly model=(--model_name HuggingFaceTB/SmolLM-1.7B --num_hidden_layers 5 --mbs 4 --seq_len 128 --use_cpu
  --total_train_steps 5)

# Kilobytes that process $1 and its children hold now, shared pages counted in parts.
held() {
  local pid
  for pid in "$1" $(pgrep -P "$1"); do
    awk '/^Pss:/ {print $2}' "/proc/$pid/smaps_rollup" 2>/dev/null || true
  done | awk '{sum += $1} END {print sum + 0}'
}

# measure NAME FLAGS...: trains, and leaves tokens/s in NAME.rate and the peak in NAME.kb.
measure() {
  local name=$1 most=0 now
  shift
  "$picotron" train "${model[@]}" --save_dir "$work/$name" "$@" >"$work/$name.log" 2>&1 &
  local pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    now=$(held "$pid")
    ((now <= most)) || most=$now
    sleep 0.5
  done
  wait "$pid" || { cat "$work/$name.log" >&2; exit 1; }
  awk '$1 == "tokens/s" {print $2; exit}' "$work/$name.log" >"$work/$name.rate"
  echo "$most" >"$work/$name.kb"
}

measure eight --dp 2 --tp 2 --pp 2 --pp_engine 1f1b --grad_acc_steps 2
measure one --grad_acc_steps 4
awk -v eight="$(cat "$work/eight.rate")" -v one="$(cat "$work/one.rate")" -v kb8="$(cat "$work/eight.kb")" \
  -v kb1="$(cat "$work/one.kb")" 'BEGIN {
    printf "eight ranks   %7.1f tokens/s   %6.2f GB in all\n", eight, kb8 * 1024 / 1e9
    printf "one rank      %7.1f tokens/s   %6.2f GB\n", one, kb1 * 1024 / 1e9
    printf "ratio         %7.2f\n", eight / one }'
