#!/usr/bin/env bash
# Makes .deps/venv with what the interop tests and the golden script import. Whole or not at all, like tools/libtorch.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

target=.deps/venv
wanted="$(cksum <tools/requirements.txt)"
[ "$(cat "$target/STAMP" 2>/dev/null || true)" = "$wanted" ] && exit 0
rm -rf "$target"
echo "venv: installing $(grep -c == tools/requirements.txt) Python packages for the interop tests" >&2
python3 -m venv "$target" || { echo "venv: python3 -m venv failed; install Python's venv module" >&2; exit 1; }
"$target/bin/pip" install --quiet --disable-pip-version-check -r tools/requirements.txt
echo "$wanted" >"$target/STAMP"
