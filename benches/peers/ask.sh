#!/bin/sh
# Asking with Sidenote and with sentence-transformers + faiss + transformers side by side: installs the peers, builds, measures.
#
#   benches/peers/ask.sh WORK ENCODER READER.gguf SIMPLEWIKI QUESTIONS.jsonl [options of ask.py, such as --rounds 2]
#
# ENCODER is all-MiniLM-L6-v2's folder, READER.gguf a Llama with a chat template such as SmolLM2-135M-Instruct.Q4_1.gguf, SIMPLEWIKI a
# folder of articles (*.jsonl), QUESTIONS.jsonl NQ-open's. WORK takes the packages (6 GB: PyTorch's wheel for Linux brings its libraries for
# graphics cards along), the rows and both indexes, and is reused by the next run. Needs Rust, a C compiler, python3
# (3.11 or later, with venv) and a package index.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 5 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
encoder=$2 reader=$3 wiki=$4 questions=$5
shift 5

python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.24.0 \
    sentence-transformers==6.2.0 faiss-cpu==1.15.1 gguf accelerate

manifest=$here/../../Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" --bin sidenote --example ask_peer --example encode_peer
built=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release

exec "$python" "$here/ask.py" "$built/sidenote" "$built/examples/ask_peer" "$built/examples/encode_peer" \
    "$encoder" "$reader" "$wiki" "$questions" "$work/ask" "$@"
