"""Writes asset files so that the same input gives the same bytes."""

import json

import zstandard


def lines(records):
    """JSON lines of `records`, keys in the order given."""
    return "".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) + "\n" for r in records)


def write_text(path, text):
    """Writes a file in UTF-8 with Unix line ends, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_zst(path, records):
    """Writes `records` as JSON lines compressed at zstd level 19."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(lines(records).encode()))
