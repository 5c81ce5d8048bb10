"""How much of what comes next stands in a chunk's neighbours: what RETRO could copy, whatever its layers learn.

    python overlap.py WORK WIKITEXT2 SIMPLEWIKI [--cells PATTERN]

WIKITEXT2 and SIMPLEWIKI are the folders of memory.py. Texts are cut into chunks of CHUNK words. For chunks of held-out text, neighbours
are found among the chunks of the training text, and each with the chunk after it is what RETRO reads while it writes the chunk
after the one that was looked up. Measured is the share of that chunk's words that follow the two words before them
somewhere in there as well: for the first 2 and 10 neighbours, by what they are found by:

    chance    any chunks
    words     the chunk's words, weighted by how few chunks have them (cosine of random projections)
    next      the same of the chunk that is to be written, which no retriever knows

Texts: wikitext2, and retrofit.py's ordinary and templated articles. Needs numpy; it runs no model and needs no program. A cell is a
text; its result is a line of overlap.jsonl beside this file, and overlap.md is written from all lines.
"""

import argparse
import os
import re
from functools import partial

import numpy
from cells import arguments, run_cells
from memory import wikitext
from retrofit import articles

CHUNK, QUERIES, WIDTH = 24, 2000, 512
COUNTS = (2, 10)
TEXTS = ["wikitext2", "ordinary", "templated"]


def texts(args, name):
    """Training and held-out documents."""
    if name == "wikitext2":
        return [[a["text"] for a in wikitext(os.path.join(args.wikitext2, f"{part}.txt"))] for part in ("train", "test")]
    return [[a["text"] for a in part] for part in articles(args.simplewiki, name, 4000, 80)]


class Chunks:
    """Documents in chunks of words, which go by their numbers in `vocabulary`."""

    def __init__(self, documents, vocabulary):
        self.chunks, self.following = [], []
        for text in documents:
            words = [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\w+|[^\w\s]", text.lower())]
            own = [words[i : i + CHUNK] for i in range(0, len(words), CHUNK)]
            self.chunks += own
            self.following += [*own[1:], []] if own else []

    def vectors(self, chunks, weights, projection):
        rows = numpy.zeros((len(chunks), WIDTH), numpy.float32)
        for row, chunk in zip(rows, chunks):
            # A word twice says no more than once.
            known = list(set(chunk))
            row[:] = weights[known] @ projection[known]
        return rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def measure(args, name):
    vocabulary = {}
    known, held = (Chunks(documents, vocabulary) for documents in texts(args, name))
    chance = numpy.random.default_rng(0)
    asked = [i for i, after in enumerate(held.following) if after]
    asked = sorted(chance.choice(asked, min(QUERIES, len(asked)), replace=False))
    having = numpy.zeros(len(vocabulary))
    for chunk in known.chunks:
        having[list(set(chunk))] += 1
    weights = numpy.log(len(known.chunks) / (having + 1)).clip(0).astype(numpy.float32)
    projection = chance.standard_normal((len(vocabulary), WIDTH)).astype(numpy.float32)
    rows = known.vectors(known.chunks, weights, projection)

    def nearest(chunks):
        scores = held.vectors(chunks, weights, projection) @ rows.T
        return numpy.argsort(-scores, axis=1)[:, : max(COUNTS)]

    found = {
        "chance": chance.integers(0, len(rows), (len(asked), max(COUNTS))),
        "words": nearest([held.chunks[i] for i in asked]),
        "next": nearest([held.following[i] for i in asked]),
    }
    shares = {}
    for by, neighbours in found.items():
        for count in COUNTS:
            here = words = 0
            for i, mine in zip(asked, neighbours):
                read = set()
                for n in mine[:count]:
                    text = known.chunks[n] + known.following[n]
                    read.update(zip(text, text[1:], text[2:]))
                text = held.chunks[i][-2:] + held.following[i]
                words += len(text) - 2
                here += sum(three in read for three in zip(text, text[1:], text[2:]))
            shares[f"{by}, {count}"] = round(here / words, 4)
    return {"chunks": len(rows), "queries": len(asked), "words": len(vocabulary), "shares": shares}


def table(lines):
    columns = list(lines[0]["shares"]) if lines else []
    rows = [
        "# What RETRO could copy\n",
        "Made by `benches/quality/overlap.py` (see there): the share of a chunk's words that follow the two words before them in the\n"
        "neighbours of the chunk before it as well, by what the neighbours are found by, and how many they are.\n",
        "| text | chunks | " + " | ".join(columns) + " |",
        "|---|--:|" + "--:|" * len(columns),
    ]
    for line in sorted(lines, key=lambda line: TEXTS.index(line["text"])):
        rows.append(f"| {line['text']} | {line['chunks']} | " + " | ".join(f"{line['shares'][c]:.3f}" for c in columns) + " |")
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("wikitext2")
    parser.add_argument("simplewiki")
    args = arguments(parser, "work", "wikitext2", "simplewiki", program=False)
    run_cells("overlap", args.cells, [(name, (name,), partial(measure, args, name)) for name in TEXTS], ["text"], table)


if __name__ == "__main__":
    main()
