#!/usr/bin/env bash
# Brings libtorch 2.11.0 into .deps/libtorch from the `torch` package on PyPI, which carries the same libraries and headers.
#   tools/libtorch.sh cpu    0.7 GB, no CUDA needed to build or run (the default)
#   tools/libtorch.sh cuda   4.9 GB, the same libraries with CUDA and everything they need
# The folder appears under its name only when it is whole, so an interrupted run is simply started again.
set -euo pipefail
cd "$(dirname "$0")/.."

flavour="${1:-cpu}"
version=2.11.0
target=.deps/libtorch
stamp="$version-$flavour"

[ "$(cat "$target/STAMP" 2>/dev/null || true)" = "$stamp" ] && exit 0
if [ "$flavour" = cpu ] && [ "$(cat "$target/STAMP" 2>/dev/null || true)" = "$version-cuda" ]; then
    exit 0 # the CUDA build serves the CPU too
fi
command -v python3 >/dev/null || { echo "libtorch: python3 is needed to fetch it; install Python 3 with venv" >&2; exit 1; }

part="$target.part"
rm -rf "$part" && mkdir -p "$part"
python3 -m venv "$part/venv" || { echo "libtorch: python3 -m venv failed; install Python's venv module" >&2; exit 1; }
pip=("$part/venv/bin/pip" install --quiet --disable-pip-version-check --target "$part")

echo "libtorch: fetching torch $version ($flavour)" >&2
case "$flavour" in
cpu)
    "${pip[@]}" --no-deps "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
    # libtorch_cpu.so names these two and nothing else of CUDA.
    find "$part/nvidia" \( -name 'libcudart.so.13' -o -name 'libcupti.so.13' \) -exec cp {} "$part/torch/lib/" \;
    rm -f "$part"/torch/lib/lib{torch_cuda,torch_cuda_linalg,c10_cuda,torch_nvshmem,caffe2_nvrtc,torch_python}*.so*
    rm -rf "$part/nvidia" "$part"/*.dist-info
    ;;
cuda)
    # The last two: headers that NCCL's name, which torch does not depend on.
    "${pip[@]}" "torch==$version" "nvidia-cuda-crt==13.0.*" "nvidia-cuda-cccl==13.0.*"
    ;;
*)
    echo "libtorch: unknown flavour \`$flavour\`; known: cpu, cuda" >&2
    exit 2
    ;;
esac
rm -rf "$part/venv"
echo "$stamp" >"$part/STAMP"
rm -rf "$target" && mv "$part" "$target"
echo "libtorch: $target is ready" >&2
