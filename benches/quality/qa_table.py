"""The page qa.md out of the lines of qa.jsonl."""

import random
from statistics import mean

from qa_data import SETS, SHOTS

# Stages whose answers are compared, and that with which each is.
BASES = [
    ("untrained-bm25", ("closed-book", "untrained-"), False),
    # What passages add to what training alone does.
    ("closed-book-tuned", ("reader-pool-", "joint-"), True),
    ("untrained-pool-bm25", ("untrained-pool-",), True),
    ("reader-bm25", ("reader-", "joint-", "query-side-"), False),
    ("reader-pool-bm25", ("reader-pool-", "joint-", "query-side-"), True),
    # What learning the retriever adds to its passages.
    ("reader-pool-minilm", ("joint-", "query-side-"), True),
]
# Passages among which an answer is looked for.
AT = [1, 5, 20, 100]
FOUND = ("retrieve-", "ceiling")


def interval(ours, theirs):
    """The difference of two means over the same questions, in points, with a 95 % bootstrap interval."""
    rng, n = random.Random(0), len(ours)
    apart = [a - b for a, b in zip(ours, theirs)]
    means = sorted(sum(rng.choices(apart, k=n)) / n for _ in range(2000))
    return f"{100 * sum(apart) / n:+.1f} ({100 * means[50]:+.1f} to {100 * means[1949]:+.1f})"


def head(*names):
    return ["| | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]


def row(name, values):
    return f"| {name} | " + " | ".join(values) + " |"


def spread(lines, what):
    """The mean over seeds, with the least and the most where there are several."""
    values = [line[what] for line in lines]
    if None in values:
        return "-"
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{several}"


def table(lines, order):
    by = {}
    for line in lines:
        by.setdefault((line["cell"], line["set"]), []).append(line)
    show = lambda cell, value: [value(by[cell, name]) if (cell, name) in by else "-" for name in SETS]
    there = [cell for cell in order if any((cell, name) in by for name in SETS)]
    rows = ["# Open questions over Simple English Wikipedia\n", "Made by `benches/quality/qa.py` (see there).\n"]
    rows += ["## What can be found\n", "An article of the corpus holds an answer; one of the first 1 / 5 / 20 / 100 passages does. Questions "
        "in brackets.\n"]  # fmt: skip
    found = lambda of: " / ".join(f"{of[0][f'recall_at_{n}']:.3f}" for n in AT if f"recall_at_{n}" in of[0]) + f" ({of[0]['questions']})"
    rows += head(*SETS) + [row("ceiling", show("ceiling", lambda of: f"{of[0]['answerable']:.3f} ({of[0]['questions']})"))]
    rows += [row(c.removeprefix("retrieve-"), show(c, found)) for c in there if c.startswith("retrieve-")]
    learnt = [cell for cell in there if any("recall_at_20" in line for name in SETS for line in by.get((cell, name), ()))
        and not cell.startswith("retrieve-")]  # fmt: skip
    if learnt:
        rows += ["\nBy retrievers that have learnt, one of the first 1 / 5 / 20:\n", *head(*SETS)]
        after = lambda of: " / ".join(spread(of, f"recall_at_{n}") for n in AT[:3])
        rows += [row(cell, show(cell, after)) for cell in learnt]
    rows += ["\n## What is answered\n", "Exact match / F1 / the answer holds a right one (questions; seconds of a set, its share of training "
        "not counted). Quoting answers with a sentence, so that it matches exactly by chance only.\n"]  # fmt: skip
    seconds = lambda of: f"; {mean(line['questions'] / line['questions_per_second'] for line in of):.0f} s"
    said = lambda of: " / ".join(spread(of, what) for what in ("exact_match", "f1", "holds_answer")) + f" ({of[0]['questions']}{seconds(of)})"
    rows += head(*SETS) + [row(cell, show(cell, said)) for cell in there if not cell.startswith(FOUND)]
    trained = {c: line["train_seconds"] for c in there for name in SETS for line in by.get((c, name), ()) if "train_seconds" in line}
    if trained:
        rows += [f"\nTrained on {SHOTS} examples, once each (16, four times each, where the name says so), in seconds: " + ", ".join(f"{c} {s:.0f}" for c, s in trained.items()) + "."]
    for base, kinds, pool in BASES:
        rows += beside(by, there, base, kinds, pool)
    return "\n".join(rows) + "\n"


def beside(by, there, base, kinds, pool):
    """How cells answer beside `base`, over the questions of all sets that both have."""
    rows = []
    for cell in there:
        if cell == base or not cell.startswith(kinds) or ("-pool-" in cell) != pool:
            continue
        sets = [name for name in SETS if (cell, name) in by and (base, name) in by]
        if not sets:
            continue
        # Of the seeds that both have, where both have seeds.
        seeds = lambda cell, name: {line.get("seed") for line in by[cell, name]}
        alike = lambda name: seeds(cell, name) & seeds(base, name) or seeds(cell, name) | seeds(base, name)
        lines = lambda cell, name: (line for line in by[cell, name] if line.get("seed") in alike(name))
        of = lambda which, what, sets: [mean(values) for name in sets for values in zip(*(line[what] for line in lines(which, name)))]
        compare = lambda what, sets: interval(of(cell, what, sets), of(base, what, sets))
        written = [name for name in sets if name != "trec"]
        f1 = f"; F1 {compare('f1s', written)}" if written else ""
        rows += [f"- {cell}: exact match {compare('exact', sets)}{f1} ({', '.join(sets)})"]
    title = f"\nBeside {base}, in points, each question's mean over the seeds that both have, with a 95 % bootstrap interval over questions:\n"
    return [title, *rows] if rows else []
