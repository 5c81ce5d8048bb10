#!/usr/bin/env bash
# Makes a folder that tests and measures the CUDA kernels on a machine that has a GPU and no Rust:
#
#     export NVCC=$(scripts/fetch_nvcc.sh ~/cuda-compiler)
#     scripts/gpu_folder.sh FOLDER
#
# Here it needs Rust and nvcc; there FOLDER/run needs NVIDIA's driver (580 or newer) and, for the peers, Python with
# PyTorch. In the folder are the test and the benchmark program, stripped, with all kernels in them, and the peers' script.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
mkdir -p "$folder"

built=$("${CARGO:-cargo}" build --release -p sidenote-kernels --features sidenote-kernels/cuda --test cuda --bench gpu \
    --message-format json-render-diagnostics)
# What was built of this kind of target.
program() {
    sed -n '/"kind":\["'"$1"'"\]/s/.*"executable":"\([^"]*\)".*/\1/p' <<< "$built"
}
strip -o "$folder/test" "$(program test)"
strip -o "$folder/bench" "$(program bench)"
cp benches/peers/gpu.py "$folder/"

cat > "$folder/run" <<'END'
#!/usr/bin/env bash
# Tests the kernels on this machine's GPU, then measures them and PyTorch in turn:
#
#     ./run [FOLDER]     gpu-kernels.json, gpu-train.json and gpu-topk.json to FOLDER, else here
#
# ROWS=1000000 ./run searches fewer than ten million rows. SANITIZE=1 ./run tests under compute-sanitizer too.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath -m "${1:-$here}")
mkdir -p "$to"
cd "$here"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
./test --ignored gpu --test-threads 1
if [[ -n ${SANITIZE:-} ]]; then
    compute-sanitizer --error-exitcode 1 ./test --ignored gpu --test-threads 1
fi
ours=$(mktemp)
trap 'rm -f "$ours"' EXIT
./bench "$ours" "${ROWS:-10000000}"
if python3 -c 'import torch' 2> /dev/null; then
    python3 gpu.py "$ours" "$to"
else
    echo 'no PyTorch here: our own figures alone' >&2
    cp "$ours" "$to/gpu-ours.json"
fi
END
chmod +x "$folder/run"

# It travels together with the repository, within 60 MiB.
size=$(du -sk "$folder" | cut -f1)
echo "$folder: $((size / 1024)) MiB"
if ((size > 40 * 1024)); then
    echo "the folder is larger than 40 MiB" >&2
    exit 1
fi
