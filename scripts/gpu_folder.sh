#!/usr/bin/env bash
# Makes a folder that tests and measures the CUDA kernels on a machine that has a GPU and no Rust:
#
#     export NVCC=$(scripts/fetch_nvcc.sh ~/cuda-compiler)
#     scripts/gpu_folder.sh FOLDER
#
# Here it needs Rust, nvcc and a C++ compiler; there FOLDER/run needs NVIDIA's driver (580 or newer), cuBLAS, cuRAND and
# NVRTC of CUDA 13, and, for the peers, Python with PyTorch. In the folder are the test and benchmark programs, stripped,
# with all kernels in them, packed, and the peers' scripts. Of candle's own kernels those are compiled that our models call
# (scripts/nvcc_stand_in.sh), and programs are linked to libraries that stand in for CUDA's (scripts/emulated_gpu.sh).
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
mkdir -p "$folder"
# What was built elsewhere may have nothing in the place of kernels.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/gpu_folder
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT

built=$("${CARGO:-cargo}" build --release -p sidenote-kernels --features sidenote-kernels/cuda --test cuda --bench gpu \
    --message-format json-render-diagnostics)
of_candle=$(REAL_NVCC=$NVCC NVCC=$PWD/scripts/nvcc_stand_in.sh CUDA_COMPUTE_CAP=80 scripts/emulated_gpu.sh \
    "${CARGO:-cargo}" build --release -p sidenote -p sidenote-kernels --features cuda --test candle_cuda --test gpu \
    --example train_peer --example generate_peer --message-format json-render-diagnostics)
# What was built under this name of this kind of target.
program() {
    sed -n '/"kind":\["'"$1"'"\]/{/"name":"'"$2"'"/s/.*"executable":"\([^"]*\)".*/\1/p}' <<< "$built$of_candle" | tail -1
}
strip -o "$programs/test" "$(program test cuda)"
strip -o "$programs/bench" "$(program bench gpu)"
strip -o "$programs/test_candle" "$(program test candle_cuda)"
strip -o "$programs/test_models" "$(program test gpu)"
for example in train_peer generate_peer; do
    strip -o "$programs/$example" "$(program example $example)"
done
# All are of the same library, which a large dictionary keeps but once.
tar -C "$programs" -c . | xz --lzma2=preset=6,dict=192MiB > "$folder/programs.tar.xz"
cp benches/peers/{gpu,train_torch}.py "$folder/"

cat > "$folder/run" <<'END'
#!/usr/bin/env bash
# Tests the kernels on this machine's GPU, then measures them and PyTorch in turn:
#
#     ./run [FOLDER]     gpu-kernels.json, gpu-train.json and gpu-topk.json to FOLDER, else here
#
# ROWS=1000000 ./run searches fewer than ten million rows. SANITIZE=1 ./run tests under compute-sanitizer too. MODEL=FOLDER
# of a checkpoint ./run also measures generation with it (`transformers` is the peer).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath -m "${1:-$here}")
mkdir -p "$to"
cd "$here"
if ! command -v nvidia-smi > /dev/null; then
    echo "no NVIDIA driver on this machine (nvidia-smi): it needs 580 or newer" >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
# CUDA's libraries, of the toolkit and of PyTorch's packages.
packages=$(python3 -c 'import glob, nvidia; print(":".join(glob.glob(nvidia.__path__[0] + "/*/lib")))' 2> /dev/null || true)
export LD_LIBRARY_PATH=/usr/local/cuda/lib64:$packages${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if [[ ! -e test_candle ]]; then
    tar -xf programs.tar.xz || python3 -c 'import tarfile; tarfile.open("programs.tar.xz").extractall()'
fi
missing=$(ldd test_candle | sed -n 's/ => not found//p' | sort -u | xargs)
if [[ -n $missing ]]; then
    echo "not found: $missing; install CUDA 13.0, or PyTorch for it, whose packages have them" >&2
    exit 1
fi
for test in test test_candle test_models; do
    ./$test --ignored gpu --test-threads 1
    if [[ -n ${SANITIZE:-} ]]; then
        compute-sanitizer --error-exitcode 1 ./$test --ignored gpu --test-threads 1
    fi
done
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
