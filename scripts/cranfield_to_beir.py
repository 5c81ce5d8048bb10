#!/usr/bin/env python3
"""Turns the Cranfield collection (cran.all.1400, cran.qry, cranqrel) into BEIR's layout.

    python3 scripts/cranfield_to_beir.py CRAN_FOLDER OUT_FOLDER

Judgements 1 to 4 (complete answer ... minimum interest) count as relevant with gain 1, -1 as not
relevant. Judgements name queries by their place in cran.qry, not by the numbers printed there;
they get a "q" before their ids because BEIR never counts a document with the query's own id.
"""

import json
import re
import sys
from pathlib import Path


def records(path: Path):
    """(number, {section letter: text}) for each record of a SMART-format file."""
    for record in re.split(r"^\.I ", path.read_text(encoding="latin-1"), flags=re.M)[1:]:
        number, _, body = record.partition("\n")
        parts = re.split(r"^\.([A-Z])\s*$", body, flags=re.M)
        sections = {}
        for letter, text in zip(parts[1::2], parts[2::2]):
            sections.setdefault(letter, " ".join(text.split()))
        yield int(number), sections


def main(source: Path, out: Path) -> None:
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    with open(out / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number, part in records(source / "cran.all.1400"):
            title, text = part.get("T", ""), part.get("W", "")
            text = text.removeprefix(title).strip()  # the abstract repeats the title
            print(json.dumps({"_id": str(number), "title": title, "text": text}), file=file)
    with open(out / "queries.jsonl", "w", encoding="utf-8") as file:
        for place, (_, part) in enumerate(records(source / "cran.qry"), start=1):
            print(json.dumps({"_id": f"q{place}", "text": part["W"]}), file=file)
    with open(out / "qrels" / "test.tsv", "w", encoding="utf-8") as file:
        print("query-id", "corpus-id", "score", sep="\t", file=file)
        for line in (source / "cranqrel").read_text().splitlines():
            query, document, code = line.split()[:3]
            print(f"q{query}", document, int(1 <= int(code) <= 4), sep="\t", file=file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
