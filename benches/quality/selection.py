"""What methods of selection choose for a task (Stage A: no training), cell by cell.

    python selection.py WORK DATA --sidenote PROGRAM [--cells PATTERN]

DATA is a folder with `p3_t0_train` (T0's training mixture in small), `sni` (Super-NaturalInstructions), `eval_deft_fewshot`
(whose inputs, all seeds together and without their answers, are the targets' examples), `eval_fewglue32` and `recross` (whose
evaluation files the pool must not touch). The pool is made of the first two by `sidenote pool build`, without the tasks
of selection.left_out.txt and without any row that shares a run of 13 words, or a whole shorter text, with the evaluation files.

dsir draws the shares of the target's words half way to those of the pool (`--smoothing`); dsir-paper does not, as in its paper.

A cell is one choice of 1 % of the pool for one target. Its result is a line of selection.jsonl beside this file, appended as soon
as it is there; what is there is not run again. At the end selection.md is written from all lines:

- time and memory of `sidenote select`, reading the pool included. Vectors of the pool are made once and kept: the first of
  deft, rds+ and two-stage to run needs the time to make them, and task-aware those of its own.
- tasks: how many the choice is from. related: the share of it that is of tasks of the target's own kind, by the categories of
  Super-NaturalInstructions (none is known for CaseHOLD).
  The categories are looked at here alone: no method is told them. task-aware's form was chosen by this number, on these targets.
- cosine: of each example to the nearest row chosen, mean; found: the share of examples with a chosen row among the ten nearest
  of the pool. Both by the built-in encoder, which flatters the methods that choose by it.
- overlap: with each other method, in common over all of both.

The machine may be busy: only seconds suffer.
"""

import argparse
import glob
import json
import os
import subprocess
import time
from functools import partial

from cells import HERE, arguments, once, run_cells, sidenote

METHODS = ["deft", "rds+", "task-aware", "two-stage", "bm25", "dsir", "dsir-paper", "random", "random-balanced"]
# A target's folder of DEFT's few-shot files, and the categories of tasks like it.
TARGETS = {
    "rte": (["rte"], ["Textual Entailment"]),
    "cb": (["cb"], ["Textual Entailment"]),
    "anli": (["anli-r1", "anli-r2", "anli-r3"], ["Textual Entailment"]),
    "copa": (["copa"], ["Cause Effect Classification"]),
    "hellaswag": (["h-swag"], ["Text Completion", "Coherence Classification", "Story Composition"]),
    "wic": (["wic"], ["Word Semantics", "Word Relation Classification"]),
    "wsc": (["wsc"], ["Coreference Resolution"]),
    "winogrande": (["winogrande"], ["Coreference Resolution"]),
    "casehold": (["casehold"], []),
}
# Where a method keeps vectors of the pool.
VECTORS = {"deft": "vectors", "rds+": "vectors", "two-stage": "vectors", "task-aware": "vectors-task"}
FRACTION, SEED = 0.01, 1
# Words in the names and sources of tasks that are derived from a target; tests/pool.rs has the same.
DERIVED = set(
    "rte cb copa xcopa trianglecopa trainglecopa wic xlwic wsc mwsc wscfixed winograd winowhy winogrande swag hellaswag anli "
    "casehold".split()
)


def evaluation_files(data):
    files = [f"{data}/eval_fewglue32/{task}/val.jsonl" for task in ("RTE", "CB", "COPA", "WiC", "WSC")]
    names = ("winogrande-winogrande_xl", "hellaswag", "anli_r1", "anli_r2", "anli_r3")
    return files + [f"{data}/recross/eval/{name}.test.jsonl" for name in names]


def build_pool(args, *leave_out):
    """Makes the pool, without the tasks of the files `leave_out` too, and says so if a task of a target is in it."""
    command = ["pool", "build", f"p3:{args.data}/p3_t0_train", f"sni:{args.data}/sni/tasks_en", "--drop-contaminated"]
    command += ["--exclude", os.path.join(HERE, "selection.left_out.txt"), "--out", "pool"]
    for file in leave_out:
        command += ["--exclude", file]
    for file in evaluation_files(args.data):
        command += ["--evaluation", file]
    report = sidenote(args, *command)
    for name in (*report["tasks"], *report["sources"]):
        words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
        assert not DERIVED.intersection(words), f"{name} is in the pool"
    assert not report["unused_patterns"], report["unused_patterns"]
    return report


def pool_rows(args):
    for path in sorted(glob.glob(f"{args.work}/pool/instances-*.jsonl")):
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def categories(args):
    """The cluster of each task of the pool."""
    clusters = {}
    for row in pool_rows(args):
        clusters[row.get("task", "unknown")] = row.get("cluster")
    return clusters


def labelled(args, target):
    """The target's examples, with their answers, by their distinct inputs."""
    rows = {}
    for folder in TARGETS[target][0]:
        for path in sorted(glob.glob(f"{args.data}/eval_deft_fewshot/{folder}/**/*.jsonl", recursive=True)):
            with open(path, encoding="utf-8") as file:
                rows.update((row["input"], row) for row in map(json.loads, filter(str.strip, file)))
    return rows


def write_target(args, target, inputs=None):
    """The target's distinct inputs, without answers."""
    inputs = inputs or labelled(args, target)
    path = f"{args.work}/{target}.jsonl"
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"input": text}, ensure_ascii=False) + "\n" for text in inputs)
    return path, len(inputs)


def chosen(args, target, method):
    """The rows that a method chose, if it has run."""
    path = f"{args.work}/{target}.{method}.chosen.jsonl"
    if not os.path.exists(path):
        return set()
    with open(path, encoding="utf-8") as file:
        return {json.loads(line)["index_id"] for line in file}


def timed(args, *command):
    """What a command of the program reports, its seconds, and its largest resident memory in megabytes."""
    begun = time.monotonic()
    command = [args.sidenote, *map(str, command), "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=args.work) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return json.loads(said), time.monotonic() - begun, usage.ru_maxrss / 1024


def measure(args, target, method):
    pool = once(f"{args.work}/pool.json", partial(build_pool, args))
    clusters = once(f"{args.work}/clusters.json", partial(categories, args))
    examples, count = write_target(args, target)
    out = f"{args.work}/{target}.{method}.chosen.jsonl"
    n = round(FRACTION * pool["kept"])
    options = ["--vectors", VECTORS[method]] if method in VECTORS else []
    # Without drawing the target's words to the pool's.
    name, options = ("dsir", ["--smoothing", 0]) if method == "dsir-paper" else (method, options)
    command = ["--method", name, "--target", examples, "-n", n, "--out", out, "--seed", SEED, *options]
    report, seconds, memory = timed(args, "select", "pool", *command)
    said = sidenote(args, "select", "explain", out, "--pool", "pool", "--target", examples, "--vectors", "vectors")
    related, coverage = TARGETS[target][1], said["coverage"][0]
    of_kind = sum(count for task, count in report["tasks"].items() if clusters[task] in related)
    mine = chosen(args, target, method)
    others = {other: chosen(args, target, other) for other in METHODS if other != method}
    return {
        "n": n,
        "examples": count,
        "seconds": round(seconds, 1),
        "peak_megabytes": round(memory),
        "tasks": len(report["tasks"]),
        "related": round(of_kind / n, 4) if related else None,
        "cosine": round(coverage["nearest_chosen"], 4),
        "found": round(coverage["chosen_in_ten_nearest"], 4),
        "top_tasks": dict(list(report["tasks"].items())[:5]),
        "overlap": {other: round(len(mine & rows) / len(mine | rows), 4) for other, rows in others.items() if rows},
    }


def table(lines):
    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

    def show(value, digits):
        return "" if value is None else f"{value:.{digits}f}"

    cell = {(line["target"], line["method"]): line for line in lines}
    columns = [("seconds", 1), ("peak_megabytes", 0), ("tasks", 0), ("related", 3), ("cosine", 3), ("found", 3)]
    # Methods are compared over the same targets: those that all methods which have run at all have chosen for.
    run = [method for method in METHODS if any(line["method"] == method for line in lines)]
    whole = [target for target in TARGETS if all((target, method) in cell for method in run)]
    text = [f"Written by `selection.py`, whose head says what the columns are. Means over {', '.join(whole)}:", ""]
    text += ["| method | targets | " + " | ".join(name for name, _ in columns) + " |", "|---|---|" + "---|" * len(columns)]
    for method in METHODS:
        mine = [line for line in lines if line["method"] == method and line["target"] in whole]
        if mine:
            values = [show(mean([line[name] for line in mine]), digits) for name, digits in columns]
            text.append(f"| {method} | {len(mine)} | " + " | ".join(values) + " |")
    text += ["", "Share of the choice that is of tasks of the target's kind:", ""]
    text += ["| | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for target in TARGETS:
        if TARGETS[target][1] and any(line["target"] == target for line in lines):
            values = [show(cell.get((target, method), {}).get("related"), 3) for method in METHODS]
            text.append(f"| {target} | " + " | ".join(values) + " |")
    overlaps = {}
    for line in lines:
        for other, value in line["overlap"].items():
            overlaps.setdefault(frozenset((line["method"], other)), []).append(value)
    text += ["", "Overlap of the choices of two methods, mean over targets:", ""]
    text += ["| | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for a in METHODS:
        values = ["" if a == b else show(mean(overlaps.get(frozenset((a, b)), [])), 3) for b in METHODS]
        text.append(f"| {a} | " + " | ".join(values) + " |")
    text += ["", "The tasks chosen most:", ""]
    for target in TARGETS:
        for method in METHODS:
            if (target, method) in cell and not method.startswith("random"):
                top = list(cell[target, method]["top_tasks"].items())[:3]
                text.append(f"- {target}, {method}: " + ", ".join(f"{task} ({count})" for task, count in top))
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("data")
    args = arguments(parser, "work", "data")
    cells = [
        (f"{target}-{method}", (target, method), partial(measure, args, target, method))
        for target in TARGETS
        for method in METHODS
    ]
    run_cells("selection", args.cells, cells, ["target", "method"], table)


if __name__ == "__main__":
    main()
