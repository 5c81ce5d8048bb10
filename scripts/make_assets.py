#!/usr/bin/env python3
"""Makes the data assets of Sidenote from the raw data sets.

    pip install numpy==2.4.6 tokenizers==0.23.3 zstandard==0.25.0
    python scripts/make_assets.py RAW_DIR

RAW_DIR holds `lm_simplewiki/` (train-00..03.jsonl: articles of Simple English
Wikipedia, {"id","title","text"}) and `sni/` (tasks_en/*.json: tasks of
Super-NaturalInstructions; tasks.tsv: their table). The same input gives the
same files, byte for byte, under assets/:

    simplewiki/train.jsonl.zst, heldout.jsonl.zst, statistics.json
    tokenizer/tokenizer.json
    sni/pool.jsonl.zst, target.jsonl, target_meta.json, LICENSES.md

assets/simplewiki/questions.jsonl is written by hand; it is only checked here.
"""

import argparse
import json
from pathlib import Path

import assets_io
import lm_tokenizer
import simplewiki_extract
import sni_pool

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHORT = 1200  # the questions' articles stand among so many first train records


def make_simplewiki(raw):
    """Writes the extract; returns its parts."""
    parts, statistics = simplewiki_extract.extract(raw / "lm_simplewiki")
    for name, records in parts.items():
        assets_io.write_zst(ASSETS / "simplewiki" / f"{name}.jsonl.zst", records)
    return parts, statistics


def make_tokenizer(parts, statistics):
    """Trains and writes the tokenizer; adds its bytes per token to the statistics."""
    tokenizer = lm_tokenizer.train(record["text"] for record in parts["train"])
    assets_io.write_text(ASSETS / "tokenizer" / "tokenizer.json", tokenizer.to_str())
    for kind in ("ordinary", "templated"):
        texts = [record["text"] for record in parts["heldout"] if record["kind"] == kind]
        statistics[f"{kind}_heldout_bytes_per_token"] = round(lm_tokenizer.bytes_per_token(tokenizer, texts), 3)
    statistics["train_tokens"] = sum(len(tokenizer.encode(r["text"]).ids) for r in parts["train"])


def check_questions(train):
    """Says whether each question's answer stands in its ordinary article, early in the train part."""
    path = ASSETS / "simplewiki" / "questions.jsonl"
    articles = {r["title"]: r["text"] for r in train[:SHORT] if r["kind"] == "ordinary"}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        record = json.loads(line)
        if record["answer"] not in articles.get(record["title"], ""):
            raise SystemExit(f"{path.name}: no {record['answer']!r} in an early train article {record['title']!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw_dir", type=Path)
    raw = parser.parse_args().raw_dir
    parts, statistics = make_simplewiki(raw)
    make_tokenizer(parts, statistics)
    assets_io.write_text(ASSETS / "simplewiki" / "statistics.json", json.dumps(statistics, indent=2) + "\n")
    check_questions(parts["train"])
    print(json.dumps(statistics, indent=2))
    print(json.dumps(sni_pool.make(raw / "sni", ASSETS / "sni"), indent=2))


if __name__ == "__main__":
    main()
