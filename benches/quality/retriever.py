"""What a retriever gains by tuning it (kind = "retriever"): recall before and after, cell by cell.

    python retriever.py WORK SQUAD --sidenote PROGRAM --encoder FOLDER [--cells PATTERN]

SQUAD is a folder with the two halves of SQuAD 2.0's dev set, dev-v2.0.half.json and
dev-v2.0.otherhalf.reconstructed.json (CC BY-SA 4.0), which have no article in common. FOLDER is an encoder such as
all-MiniLM-L6-v2. It learns from the answerable questions of the first half, and is asked to find the paragraphs of the second
half's: as it is (`untuned`), tuned on questions and their paragraphs (`pairs`), with another paragraph of the same article
as a hard negative (`negatives`), or on crops of the first half's paragraphs without any question (`crops`), with those of QUEUE
earlier crops beside the batch's too (`crops-queue`).

A cell is one run. Its result is a line of retriever.jsonl beside this file, appended as soon as it is there; what is
there is not run again. At the end retriever.md is written from all lines. The machine may be busy: only seconds suffer.
"""

import argparse
import json
import os
import random
import time
from functools import partial

from cells import arguments, run_cells, sidenote

CELLS = ["untuned", "pairs", "negatives", "crops", "crops-queue"]
QUEUE = 240
STEPS, BATCH, RATE = 80, 24, 2e-5
SEEDS = [1, 2, 3]


def paragraphs(path):
    """(article, text, answerable questions) of each paragraph."""
    with open(path, encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        (a["title"], p["context"], [q["question"] for q in p["qas"] if not q["is_impossible"]])
        for a in articles
        for p in a["paragraphs"]
    ]


def write_lines(path, records):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def prepare(args):
    """Pairs to learn from, the text of crops, and the second half in BEIR's layout."""
    train = paragraphs(os.path.join(args.squad, "dev-v2.0.half.json"))
    rng = random.Random(0)
    pairs = []
    for title, text, questions in train:
        others = [other for article, other, _ in train if article == title and other != text]
        pairs += [{"query": q, "positive": text, "negatives": [rng.choice(others)]} for q in questions]
    write_lines(f"{args.work}/pairs.jsonl", pairs)
    write_lines(f"{args.work}/crops.jsonl", [{"id": i, "text": text} for i, (_, text, _) in enumerate(train)])
    test = paragraphs(os.path.join(args.squad, "dev-v2.0.otherhalf.reconstructed.json"))
    write_lines(f"{args.work}/beir/corpus.jsonl", [{"_id": f"p{i}", "text": p[1]} for i, p in enumerate(test)])
    asked = [(i, question) for i, (_, _, questions) in enumerate(test) for question in questions]
    write_lines(f"{args.work}/beir/queries.jsonl", [{"_id": f"q{n}", "text": q} for n, (_, q) in enumerate(asked)])
    os.makedirs(f"{args.work}/beir/qrels", exist_ok=True)
    with open(f"{args.work}/beir/qrels/test.tsv", "w") as out:
        out.write("query-id\tcorpus-id\tscore\n")
        out.writelines(f"q{n}\tp{i}\t1\n" for n, (i, _) in enumerate(asked))


def measure(args, cell, seed):
    """Tunes as the cell says, and evaluates."""
    if not os.path.exists(f"{args.work}/beir/qrels/test.tsv"):
        prepare(args)
    encoder, seconds = args.encoder, 0.0
    if cell != "untuned":
        out = f"{args.work}/{cell}-{seed}"
        text = f'pairs = "{args.work}/pairs.jsonl"'
        queue = f"queue = {QUEUE}\nmomentum = 0.99\n" if cell == "crops-queue" else ""
        if cell.startswith("crops"):
            text = f'index = "{args.work}/index"'
            if not os.path.exists(f"{args.work}/index"):
                sidenote(args, "index", "build", f"{args.work}/crops.jsonl", "--out", f"{args.work}/index")
        with open(f"{out}.toml", "w") as file:
            file.write(
                f'kind = "retriever"\nout = "{out}"\nbase = "{args.encoder}"\n{text}\n'
                f"[retriever]\nbatch = {BATCH}\nnegatives = {int(cell == 'negatives')}\n{queue}"
                f"[training]\nsteps = {STEPS}\nlearning_rate = {RATE}\nwarmup_steps = {STEPS // 10}\n"
                f'schedule = "linear"\nseed = {seed}\n'
            )
        begun = time.monotonic()
        resume = ["--resume"] if os.path.exists(out) else []
        sidenote(args, "train", f"{out}.toml", *resume)
        encoder, seconds = f"{out}/model", time.monotonic() - begun
    found = sidenote(args, "eval", "retrieval", encoder, f"{args.work}/beir")
    names = ["queries", "passages", "ndcg_at_10", "mrr_at_10", "recall_at_10", "recall_at_100"]
    return {"seconds": round(seconds), **{name: found[name] for name in names}}


def table(lines):
    names = [name for name in lines[0] if "_at_" in name] if lines else []
    rows = []
    for cell in CELLS:
        mine = [line for line in lines if line["cell"] == cell]
        if mine:
            means = [sum(line[name] for line in mine) / len(mine) for name in names]
            spread = [max(line[name] for line in mine) - min(line[name] for line in mine) for name in names]
            values = [f"{m:.4f}" + (f" (±{s / 2:.4f})" if len(mine) > 1 else "") for m, s in zip(means, spread)]
            rows.append(f"| {cell} | {len(mine)} | " + " | ".join(values) + " |")
    heads = " | ".join(name.replace("_at_", "@") for name in names)
    return (
        "Written by `retriever.py`, whose head says what the rows are: means over seeds, with half the range.\n"
        f"Tuned for {STEPS} steps of {BATCH} queries at a rate of {RATE:g}.\n\n"
        f"| | seeds | {heads} |\n|---|---|" + "---|" * len(names) + "\n" + "\n".join(rows) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("squad")
    parser.add_argument("--encoder", required=True, help="the folder of the encoder to tune")
    args = arguments(parser, "work", "squad", "encoder")
    cells = [
        (f"{cell}-{seed}", (cell, seed), partial(measure, args, cell, seed))
        for seed in SEEDS
        for cell in CELLS
        if cell != "untuned" or seed == SEEDS[0]
    ]
    run_cells("retriever", args.cells, cells, ["cell", "seed"], table)


if __name__ == "__main__":
    main()
