#!/usr/bin/env bash
# Builds the kernels and their test program with the address and undefined-behaviour sanitizers and runs it:
# run_sanitized.sh [cases]. CXX names the compiler. Objects are kept in build/kernels and rebuilt when older
# than a source.
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=${CXX:-g++}
out=build/kernels
mkdir -p "$out"
flags=(-std=c++20 -O0 -g1 -Wall -Wextra -Wno-unknown-pragmas -Wno-maybe-uninitialized -fno-omit-frame-pointer -ffp-contract=fast
  -fno-math-errno -fsanitize=address,undefined -fno-sanitize-recover=all)

families=()
sources=(csrc/kernels/cpu/*.cpp csrc/ops/cpu/conv2d_plan.cpp tests/kernels/test_*.cpp)
for test in tests/kernels/test_*.cpp; do
  family=$(basename "$test" .cpp)
  family=${family#test_}
  families+=("$family")
done
flags+=("-DD2LFAST_FAMILIES(run)=$(printf 'run(%s);' "${families[@]}")")
sources+=(tests/kernels/main.cpp)

newest=$(find csrc tests/kernels -type f -printf '%T@\n' | sort -n | tail -n 1)
if [ ! -e "$out/test_kernels" ] || [ "$(stat -c %Y "$out/test_kernels")" -lt "${newest%.*}" ]; then
  command -v ccache >/dev/null && compiler="ccache $compiler"
  compile() { $compiler "${flags[@]}" -c "$1" -o "$out/$(basename "$1" .cpp).o"; }
  running=0
  for source in "${sources[@]}"; do
    compile "$source" &
    running=$((running + 1))
    if [ "$running" -ge "$(nproc)" ]; then
      wait -n
      running=$((running - 1))
    fi
  done
  while [ "$running" -gt 0 ]; do
    wait -n
    running=$((running - 1))
  done
  objects=()
  for source in "${sources[@]}"; do objects+=("$out/$(basename "$source" .cpp).o"); done
  $compiler "${flags[@]}" "${objects[@]}" -o "$out/test_kernels"
fi

ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 "$out/test_kernels" "${1:-150}"
