#!/usr/bin/env bash
# What only an NVIDIA GPU can show, in one call; each part has its time, a quarter of an hour together at
# most, and its file.
#
#   benches/on_a_gpu.sh RETORT_BINARY OUT [TEST_BINARY ...]
#
# The binary is of `cargo build --release --features cuda`, the tests' of `cargo test --release --features
# cuda --no-run` (parity, losses, device, retort_model): their tests that end in `on_a_gpu` are run, and look
# for their files where they were built. Python needs what benches/compare/speed.py does.
# `PARTS="doctor speed"` runs these alone.
set -uo pipefail
retort=$(realpath "$1") out=$(realpath -m "$2")
shift 2
tests=()
for binary in "$@"; do tests+=("$(realpath "$binary")"); done
mkdir -p "$out"
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export RETORT_CACHE=$scratch/cache RETORT_TEST_GPU=cuda RETORT_REQUIRE_GPU=1

part() {
    local name=$1 seconds=$2
    shift 2
    case " ${PARTS:-$name} " in *" $name "*) ;; *) return ;; esac
    printf '\n=== %s (%s s)\n' "$name" "$SECONDS"
    timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -n 25 "$out/$name.txt"
    [ $code = 0 ] || echo "$name ended with $code"
}

part machine 20 nvidia-smi
part doctor 60 "$retort" doctor --device cuda
for binary in "${tests[@]}"; do
    part "$(basename "${binary%-*}")" 90 "$binary" --nocapture --test-threads 1 on_a_gpu
done
part speed 300 python3 benches/compare/speed.py "$retort" --device cuda --pairs 9600 --rounds 2 \
    --keep "$scratch"
for model in minilm bert-base; do
    part "kernels-$model" 90 python3 benches/kernels.py "$retort" "$scratch/$model/train.toml" \
        --set data.queries=320
done
part memory 100 python3 benches/long_run.py "$retort" --device cuda --minutes 1
