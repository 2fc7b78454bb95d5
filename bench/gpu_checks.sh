#!/usr/bin/env bash
# The checks that need a GPU, in one command: no network, under 9 minutes, one JSON on stdout.
# docs/gpu-checks.md keeps the results. Python is the judge (bench/gpu_checks.py), as in the tests.
set -uo pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu_checks.sh [--out DIR] [--built] [--rehearse]

Builds the program with its CUDA plug-in into build-gpu/ and checks, on one GPU:
  unit      attention, matrix products, the fused kernels and the device against their definitions
  float32   20 losses within 1e-4 of the CPU's          bfloat16  within 2e-2
  bits      the same run twice gives the same losses and gradient norms, to the last bit
  masked    documents apart (dataset.document_masking): 20 losses within 1e-4 of the CPU's, also in context parallel
  shared    two ranks on the one GPU (backend gloo), in data, tensor (sequence parallel), pipeline and context
            parallel, follow the curve of one, within 1e-4
  resumed   a checkpoint of the GPU's run goes on to the same bits on it, also one written beside training
            (checkpoint.async), and within 1e-4 on the CPU; one of the CPU's run on the GPU, within 1e-4
  speed     tokens/s, MFU and memory of SmolLM-1.7B in bfloat16, beside plain PyTorch's where transformers is here

Writes DIR/gpu_checks.json (DIR: $OUT, else build-gpu/) and prints it; what it does goes to stderr.
Exit code: 0 where all were run and hold, 1 where one does not, 77 where there is no GPU.
LibTorch is PICOTRON_TORCH, else .venv's, else the one that python3 imports.

  --built      take the programs that are in build-gpu/ already: for a machine without a compiler
  --rehearse   every step on the CPU with a small model: tests this script, and nothing about a GPU
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out=${OUT:-build-gpu} built='' rehearse=''
while (($#)); do
  case $1 in
    --out) out=${2:?--out needs a folder}; shift ;;
    --built) built=yes ;;
    --rehearse) rehearse=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
build=$PWD/build-gpu work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$build"

say() { printf '[gpu_checks] %3d s  %s\n' "$SECONDS" "$*" >&2; }

# limited SECONDS COMMAND...: at most so long, and not past the ninth minute.
limited() {
  local seconds=$1 left=$((520 - SECONDS))
  shift
  ((left > 5)) || { say "no time left for: ${*:0:3}"; return 124; }
  timeout -k 5 $((seconds < left ? seconds : left)) "$@"
}

torch_folder() {
  [[ -z ${PICOTRON_TORCH:-} ]] || { printf '%s' "$PICOTRON_TORCH"; return; }
  local torch
  for torch in .venv/lib/python3*/site-packages/torch; do
    [[ ! -e $torch/include/ATen/ATen.h ]] || { (cd "$torch" && pwd -P); return; }
  done
  python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])'
}

build_all() {
  local targets=(picotron picotron_cuda) options jobs
  options=(-G Ninja -DCMAKE_BUILD_TYPE=Release "-DPICOTRON_TORCH=$(torch_folder)" -DPICOTRON_CUDA=ON)
  if limited 60 cmake -S . -B "$build" "${options[@]}" -DPICOTRON_TESTS=ON; then
    targets+=(engine_tests)
  else  # no GoogleTest: the unit check is reported as not run
    limited 60 cmake -S . -B "$build" "${options[@]}" -DPICOTRON_TESTS=OFF || return
  fi
  # A file that includes LibTorch takes 2 GB to compile.
  jobs=$(($(awk '/MemAvailable/ {print $2}' /proc/meminfo) / 2200000))
  ((jobs < $(nproc))) || jobs=$(nproc)
  limited 300 ninja -C "$build" -j $((jobs > 1 ? jobs : 1)) "${targets[@]}"
}

# train NAME SECONDS ARGUMENTS...: leaves $work/NAME/metrics.jsonl and step 10's checkpoint, where it wrote one and
# the run came to its end.
train() {
  local run=$1 seconds=$2
  shift 2
  say "train: $run"
  if ! limited "$seconds" "$build/picotron" train "$@" --checkpoint.save_dir "$work/$run" \
    >"$work/$run.log" 2>&1; then
    say "train: $run failed: $(tail -2 "$work/$run.log" | tr '\n' ' ')"
    rm -rf "${work:?}/$run"
  fi
  find "$work/$run" -maxdepth 1 -name '[0-9]*' ! -name 10 -exec rm -rf {} + 2>/dev/null  # the model it wrote
}

if [[ $rehearse ]]; then
  where=(--distributed.use_cpu true) name='rehearsal on a CPU'
else
  where=(--distributed.use_cpu false)
  name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
fi
if [[ ! $name ]]; then
  printf '{"gpu": null, "result": "not run: nvidia-smi shows no GPU on this machine"}\n' |
    tee "$out/gpu_checks.json"
  exit 77
fi

say "building into build-gpu/ for: $name"
if [[ $built ]]; then
  [[ -x $build/picotron ]] || { echo '--built, but there is no build-gpu/picotron' >&2; exit 2; }
elif ! build_all >"$build/build.log" 2>&1; then
  tail -5 "$build/build.log" >&2
  printf '{"gpu": "%s", "result": "not run: the build failed, see build-gpu/build.log"}\n' "$name" |
    tee "$out/gpu_checks.json"
  exit 1
fi
say 'built'

if [[ -x $build/tests/engine_tests ]]; then
  say 'unit tests'
  limited 120 "$build/tests/engine_tests" "--gtest_output=json:$work/unit.json" \
    --gtest_filter='*OnAGpu:Device.*' >"$out/unit.log" 2>&1
fi

short=(--config configs/stories.json --training.total_train_steps 20 --training.eval_interval 0)
for dtype in float32 bfloat16; do
  train "cpu-$dtype" 60 "${short[@]}" --model.dtype $dtype --distributed.use_cpu true --checkpoint.save_frequency 10
  train "gpu-$dtype" 60 "${short[@]}" --model.dtype $dtype "${where[@]}"
  train "again-$dtype" 60 "${short[@]}" --model.dtype $dtype "${where[@]}" --checkpoint.save_frequency 10
  train "resumed-$dtype" 60 "${short[@]}" --model.dtype $dtype "${where[@]}" \
    --checkpoint.load_path "$work/again-$dtype/10"
done
train async-float32 60 "${short[@]}" --model.dtype float32 "${where[@]}" --checkpoint.save_frequency 10 \
  --checkpoint.async true
train resumed-async-float32 60 "${short[@]}" --model.dtype float32 "${where[@]}" \
  --checkpoint.load_path "$work/async-float32/10"
train resumed-cpu-float32 60 "${short[@]}" --model.dtype float32 --distributed.use_cpu true \
  --checkpoint.load_path "$work/again-float32/10"
train resumed-gpu-float32 60 "${short[@]}" --model.dtype float32 "${where[@]}" \
  --checkpoint.load_path "$work/cpu-float32/10"
masked=("${short[@]}" --model.dtype float32 --dataset.document_masking true)
train cpu-masked 60 "${masked[@]}" --distributed.use_cpu true
train gpu-masked 60 "${masked[@]}" "${where[@]}"
train masked-cp 60 "${masked[@]}" "${where[@]}" --distributed.backend gloo --distributed.cp_size 2
shared=("${short[@]}" --model.dtype float32 "${where[@]}" --distributed.backend gloo)
train shared-dp 60 "${shared[@]}" --distributed.dp_size 2 --training.micro_batch_size 16
train shared-tp 60 "${shared[@]}" --distributed.tp_size 2 --distributed.sequence_parallel true
train shared-pp 60 "${shared[@]}" --distributed.pp_size 2 --training.micro_batch_size 8 \
  --training.gradient_accumulation_steps 4
train shared-cp 60 "${shared[@]}" --distributed.cp_size 2

speed=(--model.name HuggingFaceTB/SmolLM-1.7B --training.seq_length 2048 --training.micro_batch_size 4)
[[ ! $rehearse ]] ||
  speed=(--model.name HuggingFaceTB/SmolLM-135M --model.num_hidden_layers 2 --training.seq_length 64
    --training.micro_batch_size 1)
printf '{"dataset": {"name": "builtin:stories"}}\n' >"$work/speed.json"
train speed 240 --config "$work/speed.json" "${speed[@]}" --model.dtype bfloat16 \
  --training.total_train_steps 20 --training.num_samples null --checkpoint.save_frequency 1000 "${where[@]}"
if [[ ! $rehearse ]]; then
  say 'speed of plain PyTorch'
  printf 'steps 5\nsteps 15\n' |
    limited 120 python3 bench/pytorch_step.py --config '{"hidden_size": 2048, "intermediate_size": 8192,
      "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49152,
      "tie_word_embeddings": true}' --rows 4 --columns 2048 --threads 1 --dtype bfloat16 --device cuda \
      >"$work/pytorch.jsonl" 2>"$work/pytorch.log"
fi

python3 bench/gpu_checks.py "$work" "$name" "$SECONDS" >"$out/gpu_checks.json"
status=$?
cat "$out/gpu_checks.json"
exit $status
