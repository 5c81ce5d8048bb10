#!/usr/bin/env bash
# Fetches NVIDIA's CUDA 13.0 compiler from PyPI into a folder, and prints the path of its nvcc:
#
#     export NVCC=$(scripts/fetch_nvcc.sh ~/cuda-compiler)
#     cargo clippy -p sidenote-kernels --features cuda --release
#
# Needs Python with pip; no GPU, no driver, and nothing is written outside the folder. A folder that
# already holds the compiler is left as it is. The packages are NVIDIA's, under the licence of its
# CUDA toolkit: they compile our sources and are not part of what we distribute. 13.0 rather than
# anything newer: drivers of the 580 series refuse newer PTX.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder=$1
nvcc=$folder/nvidia/cu13/bin/nvcc

if [[ ! -e $folder/complete ]]; then
    mkdir -p "$folder"
    python3 -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --upgrade \
        --target "$folder" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
    chmod +x "$folder"/nvidia/cu13/bin/* "$folder"/nvidia/cu13/nvvm/bin/*
    "$nvcc" --version > "$folder/complete"
fi
realpath "$nvcc"
