"""How Sidenote's index grows: speed, memory, disk and building from ten thousand vectors to ten million.

    python growth.py DATA SYNTHETIC WORK --sidenote VECTORS [--plan PLAN] [--memory 4GiB]

DATA has the files of ann_data.py; SYNTHETIC has those of `synthetic.py write` (their first n rows are
taken), with which sizes above the corpus are measured, and one size within it, so that both kinds can be
compared. PLAN is `real:10000:QG32+RaBitQ real:all:QG32 synthetic:1000000:IVF4096,RaBitQ`, and so on; parts
for which DATA or SYNTHETIC have too few rows are left out and named, so that what there is can be measured.
An interrupted run goes on where it stopped: WORK/growth.jsonl has an index once it is built and again once
it is measured, and a build itself resumes. Each index is removed once it is measured, unless --keep is
given. After every index, benches/results/growth.json and growth.md are written anew. The latter ends with
what a thousand million vectors would take, computed from the measured figures by the formulas stated there.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import statistics
import sys

import numpy as np

import ann
import ann_report
from ann_report import mega, number

PLAN = (
    "real:10000:QG32+RaBitQ real:100000:QG32+RaBitQ+IVF1024,RaBitQ synthetic:100000:QG32+RaBitQ+IVF1024,RaBitQ "
    "real:376389:QG32+RaBitQ+IVF4096,RaBitQ synthetic:1000000:QG32+RaBitQ+IVF4096,RaBitQ "
    "synthetic:10000000:IVF16384,RaBitQ+IVF65536_QG32,RaBitQ"
)
TARGETS = [0.95, 0.99]
BILLION = 10**9


def measure(source, n, kind, raw, args):
    """The record of one index over the first n rows."""
    data = args.data if source == "real" else args.synthetic
    work = os.path.join(args.work, source)
    os.makedirs(os.path.join(work, str(n)), exist_ok=True)
    here = argparse.Namespace(
        data=data,
        work=work,
        sidenote=args.sidenote,
        build_threads=args.threads,
        seconds=args.seconds,
        memory=args.memory,
    )
    system = ann.System(f"sidenote {kind}", n, here)
    print(f"{source} {n:,} {kind}: building", file=sys.stderr, flush=True)
    built = raw.get(("built", source, n, kind), system.build)
    if not os.path.exists(os.path.join(system.dir, "manifest.json")):
        sys.exit(f"{system.dir}: was built, but is gone; take its line out of {raw.path}")
    rounds = {threads: [] for threads in (1, args.threads)}
    for _ in range(args.rounds):
        for threads in rounds:
            rounds[threads].append(system.search("passages", threads, recall=True)[0]["rows"])
    record = {
        "system": system.label,
        "dataset": "simplewiki-minilm" if source == "real" else "synthetic, drawn like simplewiki-minilm",
        "n": n,
        "dim": built["dim"],
        "k": ann.K,
        "queries": "passages",
        "build_seconds": built["build_seconds"],
        "build_cpu_seconds": built["build_cpu_seconds"],
        "build_threads": args.threads,
        "build_peak_anon_bytes": built["peak_anon_bytes"],
        "disk_bytes": built["disk_bytes"],
        "qps": {},
        "curve": [],
    }
    for threads, measured in rounds.items():
        points = []
        for same in zip(*measured):
            qps = statistics.median(row["qps"] for row in same)
            points.append(
                {
                    "effort": same[0]["breadth"],
                    "threads": threads,
                    "calls": same[0]["mode"],
                    "recall_at_10": same[0]["recall"],
                    "qps": round(qps, 1),
                }
            )
        record["curve"] += points
        for calls in ("single", "batch"):
            for target in TARGETS:
                mine = [point for point in points if point["calls"] == calls]
                if mine:
                    record["qps"][f"{calls}, {threads} threads, recall {target}"] = ann_report.at(mine, target)

    batch = [p for p in record["curve"] if (p["calls"], p["threads"]) == ("batch", 1)]
    reached = [point["effort"] for point in batch if point["recall_at_10"] >= TARGETS[0]] or [batch[-1]["effort"]]
    effort = reached[:1]
    # Rounds before this one have left the index in the page cache, as far as it fits.
    warm = [system.search("passages", 1, efforts=effort, first=True)[0] for _ in range(args.rounds)]
    cold = []
    for _ in range(args.rounds):
        system.evict()
        cold.append(system.search("passages", 1, efforts=effort, first=True)[0])
    after = system.search("passages", 1, efforts=effort, seconds=0)[0]
    record["open_ms"] = round(statistics.median(one["first_answer_ms"] for one in warm), 3)
    record["open_cold_ms"] = round(statistics.median(one["first_answer_ms"] for one in cold), 3)
    for name in ("anon_bytes", "file_bytes"):
        record[name] = after["memory"][name] - after["memory_before"][name]
    if not args.keep:
        shutil.rmtree(system.dir)
    return record


def exponent(rows, value):
    """The power of n with which a value grows, from the two largest sizes; None where it is not known."""
    known = sorted({row["n"]: value(row) for row in rows if value(row)}.items())
    if len(known) < 2:
        return None
    (n0, v0), (n1, v1) = known[-2:]
    return math.log(v1 / v0) / math.log(n1 / n0)


def billion(rows):
    """What 1e9 vectors would take, from the rows of one kind: each value with how it was found."""
    largest = max(rows, key=lambda row: row["n"])
    rows = [row for row in rows if row["dataset"] == largest["dataset"]]
    times = BILLION / largest["n"]
    build = exponent(rows, lambda row: row["build_cpu_seconds"])
    power = max(1.0, build or 1.0)
    cpu_hours = largest["build_cpu_seconds"] * times**power / 3600
    speed = "single, 1 threads, recall 0.95"
    decay = exponent(rows, lambda row: row["qps"].get(speed))
    qps = None if decay is None or not largest["qps"].get(speed) else largest["qps"][speed] * times**decay
    # What does not depend on the rows comes out as well: the slope between the two largest sizes.
    sizes = sorted(rows, key=lambda row: row["n"])[-2:]
    slope = None
    if len(sizes) == 2 and sizes[0]["n"] < sizes[1]["n"]:
        slope = max(0.0, (sizes[1]["build_peak_anon_bytes"] - sizes[0]["build_peak_anon_bytes"]) / (sizes[1]["n"] - sizes[0]["n"]))
    anon = exponent(rows, lambda row: max(row["anon_bytes"], 1))
    return {
        "system": largest["system"],
        "n": BILLION,
        "computed_from": largest["n"],
        "disk_bytes": largest["disk_bytes"] * times,
        "anon_bytes": largest["anon_bytes"] * times ** min(1.0, max(0.0, anon or 0.0)),
        "build_anon_bytes": None if slope is None else largest["build_peak_anon_bytes"] + slope * (BILLION - largest["n"]),
        "build_cpu_hours": cpu_hours,
        "build_hours": cpu_hours / largest["build_threads"],
        "build_exponent": build,
        "qps_recall_95": qps,
        "qps_exponent": decay,
    }


def table(result):
    lines = ["# Growth", "", f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += [
        "| index | vectors | kind | build s | build CPU s | build own memory MB | bytes a row on disk | own memory MB "
        "| mapped MB | open to first answer ms, warm | cold | q/s, one a call, .95 | .99 | q/s, batch, all threads, .95 | .99 |",
        "|---|--:|---|" + "--:|" * 12,
    ]
    for row in result["rows"]:
        speeds = [row["qps"].get(f"single, 1 threads, recall {target}") for target in TARGETS]
        speeds += [row["qps"].get(f"batch, {row['build_threads']} threads, recall {target}") for target in TARGETS]
        cells = [row["system"].removeprefix("sidenote "), f"{row['n']:,}", row["dataset"].split(",")[0]]
        cells += [number(row["build_seconds"], 1), number(row["build_cpu_seconds"], 1), mega(row["build_peak_anon_bytes"])]
        cells += [number(row["disk_bytes"] / row["n"]), mega(row["anon_bytes"]), mega(row["file_bytes"])]
        cells += [number(row["open_ms"], 1), number(row["open_cold_ms"], 1), *map(number, speeds)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## A thousand million vectors, computed", ""]
    lines += [
        "| index | from n = | disk TB | memory to search GB | memory to build GB | build hours on the same processors "
        "| build grows as | q/s at .95, one thread | q/s goes as |",
        "|---|" + "--:|" * 8,
    ]
    for row in result["billion"]:
        grows = [f"n^{row[name]:.2f}" if row[name] is not None else "-" for name in ("build_exponent", "qps_exponent")]
        cells = [row["system"].removeprefix("sidenote "), f"{row['computed_from']:,}"]
        cells += [number(row["disk_bytes"] / 1e12, 2), number(row["anon_bytes"] / 1e9, 2), number(row["build_anon_bytes"] and row["build_anon_bytes"] / 1e9, 1)]
        cells += [number(row["build_hours"], 0), grows[0], number(row["qps_recall_95"], 1), grows[1]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "With N = 10^9, n the largest measured size of the same kind of vectors, m the one before it, and v(n) the measured "
        "value: disk is v(n) N / n. Build hours are CPU hours v(n) (N / n)^p over the number of threads, with "
        "p = log(v(n) / v(m)) / log(n / m), or 1 where that is less or there is one size only. Memory to build is "
        "v(n) + (N - n) (v(n) - v(m)) / (n - m). Memory to search is v(n) (N / n)^p with p between 0 and 1. Speed is "
        "v(n) (N / n)^p, which holds only while what a search touches is in memory. None of these has been run at N; "
        "the number of lists of an IVF was kept as it was at n.",
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("synthetic")
    parser.add_argument("work")
    parser.add_argument("--sidenote", required=True, help="the built example `vectors`")
    parser.add_argument("--plan", default=PLAN, help=f"default: {PLAN}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--keep", action="store_true", help="keep the indexes")
    parser.add_argument("--out", default=ann.RESULTS)
    parser.add_argument("--memory", help="bound on the memory that building may take, such as 4GiB")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    raw = ann.Raw(os.path.join(args.work, "growth.jsonl"))
    rows = []
    for part in args.plan.split():
        source, size, kinds = part.split(":")
        data = args.data if source == "real" else args.synthetic
        path = os.path.join(data, "base.npy")
        there = len(np.load(path, mmap_mode="r")) if os.path.exists(path) else 0
        n = there if size == "all" else int(size)
        if not 0 < n <= there:
            print(f"{part}: left out, for {path} has {there:,} rows", file=sys.stderr, flush=True)
            continue
        for kind in kinds.split("+"):
            rows.append(raw.get((source, n, kind), lambda: measure(source, n, kind, raw, args)))
            write(rows, args)
    if rows:
        print(write(rows, args))


def write(rows, args):
    """Writes both files from what has been measured so far; the text of growth.md."""
    kinds = ann_report.unique(row["system"] for row in rows)
    result = {
        "machine": ann.machine(),
        "date": datetime.date.today().isoformat(),
        "command": f"benches/peers/growth.py DATA SYNTHETIC WORK --plan '{args.plan}'",
        "rows": rows,
        "billion": [billion([row for row in rows if row["system"] == kind]) for kind in kinds],
    }
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "growth.json"), "w", encoding="ascii") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
    text = table(result)
    with open(os.path.join(args.out, "growth.md"), "w", encoding="utf-8") as out:
        out.write(text)
    return text


if __name__ == "__main__":
    main()
