#!/bin/sh
# Sentence encoding with Sidenote, onnxruntime and sentence-transformers side by side: installs the peers, fetches
# the model, builds, measures.
#
#   benches/peers/encode.sh WORK TEXT.jsonl [options of encode.py, such as --rounds 3]
#
# TEXT.jsonl holds articles, one {"text": ...} a line, such as Simple English Wikipedia's. WORK takes the packages
# (6 GB: PyTorch's wheel for Linux brings its libraries for graphics cards along) and is reused by the next run.
# Needs Rust, a C compiler, python3 (3.11 or later, with venv) and a package index. Ten minutes on two cores.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
text=$2
shift 2

python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 \
    sentence-transformers==6.2.0 onnx==1.23.2 onnxruntime==1.31.1 onnxscript==0.7.2
[ -d "$work/all-MiniLM-L6-v2" ] || "$here/../../scripts/fetch_models.sh" "$work" all-MiniLM-L6-v2

manifest=$here/../../Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" --bin sidenote --example encode_peer
built=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release

exec "$python" "$here/encode.py" "$built/sidenote" "$built/examples/encode_peer" "$work/all-MiniLM-L6-v2" "$text" "$work" "$@"
