"""Open questions over Simple English Wikipedia: what can be found in it, and what a reader makes of it, cell by cell.

    python qa.py WORK SIMPLEWIKI QUESTIONS --sidenote PROGRAM [--reader MODEL] [--encoder FOLDER] [--cells PATTERN]

SIMPLEWIKI is a folder with train-*.jsonl, valid.jsonl and test.jsonl ({"id", "title", "text"} a line), of which all is
indexed in passages of about 100 words. QUESTIONS has the folders oqa_nq_open, oqa_webquestions, oqa_squad_open and
oqa_curatedtrec; of each test set SAMPLE questions are drawn with a fixed seed, and of these readers get the first READ.
MODEL is a reader (such as SmolLM2-135M-Instruct.Q4_1.gguf), FOLDER an encoder (such as all-MiniLM-L6-v2) beside the one in the
program; cells that need one which is not given are left out.

    ceiling                  in how many questions any article of the corpus holds an answer
    retrieve-R               whether one of the first 1, 5, 20, 100 passages does; R is bm25, static (the encoder in the
                             program), hybrid (both, by reciprocal rank), minilm or minilm-hybrid
    quoting-R                the default reader, which quotes a sentence, over the first 5 passages
    closed-book              MODEL without passages
    untrained-R              MODEL as it is, over the first 3 passages

CuratedTREC's answers are regular expressions, and looked for as such; the others' are compared as SQuAD's script does it.
A cell is one of these on one set of questions. Its result is a line of qa.jsonl beside this file, appended as soon as it is
there; what is there is not run again. At the end qa.md is written from all lines. Needs Python only.
"""

import argparse
import glob
import json
import os
import random
import re
import string
from functools import partial

from cells import arguments, run_cells, sidenote

SETS = {
    "nq": "oqa_nq_open/NQ-open.dev.jsonl",
    "webquestions": "oqa_webquestions/dpr.wq.test.jsonl",
    "squad": "oqa_squad_open/dpr.squad.test.jsonl",
    "trec": "oqa_curatedtrec/dpr.curated.test.jsonl",
}
SAMPLE, READ = 500, 100
AT = [1, 5, 20, 100]
PASSAGE_TOKENS = 160
RETRIEVERS = {
    "bm25": ("default", "words"),
    "static": ("default", "vectors"),
    "hybrid": ("default", "hybrid"),
    "minilm": ("encoder", "vectors"),
    "minilm-hybrid": ("encoder", "hybrid"),
}
CELLS = [
    "ceiling",
    *(f"retrieve-{name}" for name in RETRIEVERS),
    *(f"quoting-{name}" for name in RETRIEVERS),
    "closed-book",
    *(f"untrained-{name}" for name in RETRIEVERS),
]


def normalise(text):
    """As the official script of SQuAD does it."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


class Answers:
    """What counts as an answer to one question."""

    def __init__(self, answers, patterns):
        self.patterns = [re.compile(a, re.IGNORECASE) for a in answers] if patterns else None
        self.words = [] if patterns else [words for words in map(normalise, answers) if words]

    def held(self, text):
        if self.patterns:
            return any(pattern.search(text) for pattern in self.patterns)
        words = normalise(text)
        return any(words[i : i + len(a)] == a for a in self.words for i in range(len(words) - len(a) + 1))

    def exact(self, said):
        if self.patterns:
            return any(pattern.fullmatch(said.strip()) for pattern in self.patterns)
        return normalise(said) in self.words


def questions(args, name):
    """The sample of a set: its file in the form of `eval qa`, and its answers."""
    with open(os.path.join(args.questions, SETS[name]), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    random.Random(0).shuffle(lines)
    lines = lines[:SAMPLE]
    path = os.path.join(args.work, f"{name}.jsonl")
    with open(path, "w", encoding="utf-8") as out:
        for number, line in enumerate(lines):
            record = {"id": f"{name}-{number}", "question": line["question"], "answers": line["answer"]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path, [Answers(line["answer"], name == "trec") for line in lines]


def articles(args):
    for path in sorted(glob.glob(os.path.join(args.simplewiki, "*.jsonl"))):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def ceiling(args, name):
    answers = questions(args, name)[1]
    missing = dict(enumerate(answers))
    first = {}
    for number, wanted in missing.items():
        for words in wanted.words:
            first.setdefault(words[0], []).append((number, words))
    for article in articles(args):
        text = article["title"] + "\n" + article["text"]
        if name == "trec":
            for number in [n for n, wanted in missing.items() if wanted.held(text)]:
                del missing[number]
            continue
        words = normalise(text)
        for i, word in enumerate(words):
            for number, wanted in first.get(word, ()):
                if number in missing and words[i : i + len(wanted)] == wanted:
                    del missing[number]
    return {"questions": len(answers), "answerable": 1 - len(missing) / len(answers)}


def index(args, encoder):
    folder = os.path.join(args.work, f"index-{encoder}")
    if not os.path.exists(os.path.join(folder, "manifest.json")):
        options = ["--encoder", args.encoder] if encoder == "encoder" else []
        sidenote(args, "index", "build", *sorted(glob.glob(f"{args.simplewiki}/*.jsonl")), "--chunk-tokens", PASSAGE_TOKENS,
            "--out", folder, "--resume", *options)  # fmt: skip
    return folder


def ask(args, name, count, *options):
    """What `eval qa` says of the first `count` questions: lines of Atlas's form, and the summary."""
    out = os.path.join(args.work, "answers.jsonl")
    path, answers = questions(args, name)
    summary = sidenote(args, "eval", "qa", *options, "--data", path, "--limit", count, "--out", out)
    with open(out, encoding="utf-8") as lines:
        return list(zip(map(json.loads, lines), answers)), summary


def retrieve(args, name, retriever):
    encoder, ranking = RETRIEVERS[retriever]
    found, _ = ask(args, name, SAMPLE, "default", "--index", index(args, encoder), "--ranking", ranking, "--mode", "retrieve-only",
        "-k", max(AT))  # fmt: skip
    held = [[wanted.held(p["title"] + "\n" + p["text"]) for p in line["passages"]] for line, wanted in found]
    return {"questions": len(held), **{f"recall_at_{n}": sum(any(row[:n]) for row in held) / len(held) for n in AT}}


def read(args, name, model, retriever=None, passages=0):
    options = ["--mode", "closed-book"]
    if retriever:
        encoder, ranking = RETRIEVERS[retriever]
        options = ["--index", index(args, encoder), "--ranking", ranking, "-k", passages]
    count = SAMPLE if model == "default" else READ
    said, summary = ask(args, name, count, model, *options)
    exact = [int(wanted.exact(line["generation"])) for line, wanted in said]
    return {
        "questions": len(exact),
        "exact_match": sum(exact) / len(exact),
        "f1": None if name == "trec" else summary["f1"],
        "holds_answer": sum(wanted.held(line["generation"]) for line, wanted in said) / len(exact),
        "questions_per_second": round(summary["questions_per_second"], 3),
        "exact": exact,
    }


def measure(args, cell, name):
    kind, _, retriever = cell.partition("-")
    if cell == "ceiling":
        return ceiling(args, name)
    if cell == "closed-book":
        return read(args, name, args.reader)
    if kind == "retrieve":
        return retrieve(args, name, retriever)
    if kind == "quoting":
        return read(args, name, "default", retriever, 5)
    return read(args, name, args.reader, retriever, 3)


def interval(ours, theirs):
    """The difference of two means over the same questions, in points, with a 95 % bootstrap interval."""
    rng, n = random.Random(0), len(ours)
    apart = [a - b for a, b in zip(ours, theirs)]
    means = sorted(sum(rng.choices(apart, k=n)) / n for _ in range(2000))
    return f"{100 * sum(apart) / n:+.1f} ({100 * means[50]:+.1f} to {100 * means[1949]:+.1f})"


def table(lines):
    by = {(line["cell"], line["set"]): line for line in lines}
    head = lambda *names: ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    show = lambda cell, value: [value(by[cell, name]) if (cell, name) in by else "-" for name in SETS]
    row = lambda name, values: f"| {name} | " + " | ".join(values) + " |"
    counts = ", ".join(f"{name} {by['ceiling', name]['questions']}" for name in SETS if ("ceiling", name) in by)
    rows = ["# Open questions over Simple English Wikipedia\n", f"Made by `benches/quality/qa.py` (see there). Questions: {counts}.\n"]
    rows += ["## What can be found\n", "An article of the corpus holds an answer; one of the first 1 / 5 / 20 / 100 passages does.\n"]
    rows += head(*SETS) + [row("ceiling", show("ceiling", lambda line: f"{line['answerable']:.3f}"))]
    found = lambda line: " / ".join(f"{line[f'recall_at_{n}']:.3f}" for n in AT)
    rows += [row(c.removeprefix("retrieve-"), show(c, found)) for c in CELLS if c.startswith("retrieve-") and any((c, s) in by for s in SETS)]
    rows += ["\n## What is answered\n", "Exact match / F1 / the answer holds a right one. Quoting answers with a sentence, so that it matches exactly by chance "
        "only.\n"]  # fmt: skip
    rows += head(*SETS)
    said = lambda line: f"{line['exact_match']:.3f} / " + ("-" if line["f1"] is None else f"{line['f1']:.3f}") + f" / {line['holds_answer']:.3f}"
    readers = [c for c in CELLS if not c.startswith(("retrieve-", "ceiling")) and any((c, s) in by for s in SETS)]
    rows += [row(c, show(c, said)) for c in readers]
    base = [s for s in SETS if ("untrained-bm25", s) in by]
    others = [c for c in readers if c.startswith(("untrained-", "closed")) and c != "untrained-bm25" and all((c, s) in by for s in base)]
    if base and others:
        rows += ["\nExact match beside the same reader with BM25, in points over all sets' questions, with a 95 % bootstrap interval:\n"]
        together = lambda cell: [x for s in base for x in by[cell, s]["exact"]]
        rows += [f"- {c}: {interval(together(c), together('untrained-bm25'))}" for c in others]
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("simplewiki")
    parser.add_argument("questions")
    parser.add_argument("--reader", help="a model that reads")
    parser.add_argument("--encoder", help="an encoder beside the program's own")
    args = arguments(parser, "work", "simplewiki", "questions", "reader", "encoder")
    needs = lambda cell: ("reader" if cell.startswith(("closed", "untrained")) else None, "encoder" if "minilm" in cell else None)
    possible = [cell for cell in CELLS if all(need is None or getattr(args, need) for need in needs(cell))]
    cells = [(f"{cell}-{name}", (cell, name), partial(measure, args, cell, name)) for cell in possible for name in SETS]
    run_cells("qa", args.cells, cells, ["cell", "set"], table)


if __name__ == "__main__":
    main()
