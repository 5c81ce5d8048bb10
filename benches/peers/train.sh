#!/bin/sh
# Training with Sidenote and PyTorch side by side: installs the peers, builds, measures.
#
#   benches/peers/train.sh WORK [options of train.py, such as --models decoder:256:4]
#
# WORK takes the packages (6 GB: PyTorch's wheel for Linux brings its libraries for graphics cards along) and is
# reused by the next run. Needs Rust, a C++ compiler (for torch.compile), python3 (3.11 or later, with venv)
# and a package index. Half an hour on two cores.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
shift

python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6 safetensors einops
# Without its dependencies: the index libraries of its retrieval part are not used.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps retro-pytorch==0.3.9 tqdm sentencepiece

manifest=$here/../../Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" --example train_peer
program=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/examples/train_peer

exec "$python" "$here/train.py" "$program" "$@"
