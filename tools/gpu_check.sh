#!/usr/bin/env bash
# What a GPU makes of minitron, in at most eight minutes: parity with the CPU, scoring, pruning, distilling (f32, bf16,
# layers run again), memory said beside memory taken, tokens per second beside transformers and Liger. Builds nothing.
#   tools/gpu_check.sh [OUT.md]            a table, on stdout and in out/gpu_check.md
#
# MINITRON    the binary, of a CUDA build (make libtorch CUDA=1, make build); target/release/minitron where not given
# PYTHON      a Python with torch and transformers, and liger_kernel where that is to be compared with
# SECONDS_MAX how long it may take, 480 where not given; what is not reached is written down as such
# DEVICE=cpu  the same steps on a small model and on the CPU: a trial of this script, which says nothing of a GPU
#
# Ends with 0 where all checks hold, 1 where one does not, 77 where there is no GPU, 78 where the binary is missing or sees
# none.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu_check.md}
device=${DEVICE:-cuda}
minitron=${MINITRON:-target/release/minitron}

refuse() {
    echo "gpu_check: $2" >&2
    exit "$1"
}

if [ "$device" = cuda ]; then
    command -v nvidia-smi > /dev/null || refuse 77 "no nvidia-smi, so no GPU: nothing was checked"
    nvidia-smi --query-gpu=name --format=csv,noheader > /dev/null 2>&1 \
        || refuse 77 "nvidia-smi finds no GPU: nothing was checked"
elif [ "$device" != cpu ]; then
    refuse 78 "DEVICE: expected cuda or cpu, got \`$device\`"
fi
[ -x "$minitron" ] || refuse 78 "no binary at $minitron; build one first (make libtorch CUDA=1, make build), or set MINITRON"
seen=$("$minitron" inspect examples/demo --device "$device" 2>&1) || true
case $seen in
    *"CUDA devices are visible"*) refuse 78 "$minitron sees no GPU: it needs the CUDA build of libtorch beside it" ;;
esac
command -v python3 > /dev/null || refuse 78 "no python3, which reads the results"

mkdir -p "$(dirname "$out")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GPU_CHECK_WORK=$work GPU_CHECK_OUT=$out GPU_CHECK_DEVICE=$device GPU_CHECK_MINITRON=$minitron
exec_python=${PYTHON:-$([ -x .deps/venv/bin/python ] && echo .deps/venv/bin/python || echo python3)}
export GPU_CHECK_PYTHON=$exec_python GPU_CHECK_SECONDS=${SECONDS_MAX:-480}
python3 tools/gpu_check.py
