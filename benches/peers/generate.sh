#!/bin/sh
# Greedy generation with Sidenote, transformers and llama.cpp side by side: installs the peers, builds, measures.
#
#   benches/peers/generate.sh WORK MODEL.gguf [options of generate.py, such as --batches 1]
#
# MODEL.gguf is a Llama of blocks, such as SmolLM2-135M-Instruct.Q4_1.gguf. WORK takes the packages (6 GB: PyTorch's wheel for
# Linux brings its libraries for graphics cards along) and the weights in f32, and is reused by the next run.
# llama.cpp is compiled for this processor. Needs Rust, a C++ compiler, cmake, python3 (3.11 or later, with venv) and
# a package index.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
model=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
shift 2

python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check \
    torch==2.15.0 transformers==5.24.0 numpy==2.4.6 safetensors gguf llama-cpp-python==0.3.36
[ -f "$work/f32/config.json" ] || "$python" "$here/generate_models.py" "$model" "$work/f32"

manifest=$here/../../Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" --example generate_peer
program=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/examples/generate_peer

exec "$python" "$here/generate.py" "$program" "$model" "$work/f32" "$@"
