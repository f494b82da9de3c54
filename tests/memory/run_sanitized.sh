#!/usr/bin/env bash
# Builds the block cache and its test program with the address and undefined-behaviour sanitizers, and with the
# thread sanitizer, and runs both: run_sanitized.sh [steps]. CXX names the compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=${CXX:-g++}
out=build/memory
mkdir -p "$out"
# The thread sanitizer of g++ 12 cannot place its shadow where addresses are very random.
fixed=(env)
if setarch "$(uname -m)" -R true 2>/dev/null; then fixed=(setarch "$(uname -m)" -R); fi
sources=(csrc/memory/block_cache.cpp tests/memory/test_block_cache.cpp)
for sanitizers in address,undefined thread; do
  program="$out/test_block_cache_${sanitizers%%,*}"
  if [ ! -e "$program" ] || [ -n "$(find csrc/memory tests/memory -newer "$program" -type f)" ]; then
    $compiler -std=c++20 -O1 -g1 -Wall -Wextra -pthread -fno-omit-frame-pointer "-fsanitize=$sanitizers" \
      -fno-sanitize-recover=all "${sources[@]}" -o "$program"
  fi
  "${fixed[@]}" "$program" "${1:-2000}"
done
