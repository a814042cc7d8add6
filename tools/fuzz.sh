#!/usr/bin/env bash
# Builds and runs every fuzz target for so many seconds each: tools/fuzz.sh [SECONDS] [TARGET...]. Needs a nightly compiler
# and `cargo install cargo-fuzz`. SANITIZER=none is faster and finds no misuse of memory in C++.
#
# Prints a line a target; ends with 1 after a crash, whose input then lies in tests/fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
sanitizer=${SANITIZER:-address}
export LIBTORCH=${LIBTORCH:-$PWD/.deps/libtorch/torch}
# What depends on the number of threads is slower and harder to repeat.
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export LD_LIBRARY_PATH="$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0:allocator_may_return_null=1}
export LSAN_OPTIONS="suppressions=$PWD/tests/fuzz/leaks.txt:print_suppressions=0"

dir=tests/fuzz
cargo +nightly fuzz build --fuzz-dir "$dir" --sanitizer "$sanitizer" >&2
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir "$dir"); fi

# Files are opened and written for every execution: in memory where there is such a place.
scratch=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch

failed=0
printf '%-12s %12s %8s %8s %6s %6s\n' target executions exec/s edges s crash
for target in "${targets[@]}"; do
    grown=$dir/target/corpus/$target
    mkdir -p "$grown" "$dir/artifacts/$target"
    log=$scratch/$target.log
    status=0
    "$dir/target/x86_64-unknown-linux-gnu/release/$target" "$grown" "$dir/corpus/$target" \
        -artifact_prefix="$dir/artifacts/$target/" -max_total_time="$seconds" -print_final_stats=1 \
        -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=16384 >"$log" 2>&1 || status=$?
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log" | tail -n 1)
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)
    crash=no
    if [ "$status" -ne 0 ]; then
        crash=yes failed=1
        tail -n 40 "$log" >&2
    fi
    printf '%-12s %12s %8s %8s %6s %6s\n' "$target" "${executions:-?}" "${rate:-?}" "${edges:-?}" "$seconds" "$crash"
done
exit $failed
