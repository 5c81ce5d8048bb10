"""Sidenote and its peers on the same vectors, in alternation: recall against speed, building, memory, opening.

    python ann.py DATA WORK --sidenote VECTORS [--rows 100000,376389] [--rounds 5]

DATA has the files of ann_data.py, WORK takes the indexes, and VECTORS is Sidenote's
index/examples/vectors, built with --release. ann.sh calls this with all that it needs. Writes
benches/results/ann.json (a row a system, number of rows, threads, kind of query and effort), and from
it, by way of ann_report.py, ann.md and ann.svg.

Each measurement is a process of its own, which loads a finished index from disk. A round measures every
system once for every number of threads and kind of query; the next round does so in another order. What
is reported is the median over the rounds, with the lowest and the highest. An interrupted run goes on
where it stopped: WORK/raw.jsonl has what was measured.
"""

import argparse
import datetime
import glob
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

import ann_peers
import ann_report

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, os.pardir, "results")
K = ann_peers.K
QUERIES = ["passages", "questions"]
# Sidenote's kinds, with the efforts to try; None for a kind that has none.
SIDENOTE = {
    "QG32": [16, 20, 30, 50, 80, 120, 200, 320, 500, 800, 1200],
    "RaBitQ": [20, 30, 50, 75, 100, 150, 200, 400],
    "Flat": [None],
    "IVF1024,RaBitQ": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "IVF4096,RaBitQ": [4, 8, 16, 32, 64, 128, 256, 512],
    "IVF4096_QG32,RaBitQ": [8, 16, 32, 64, 128, 256, 512, 1024],
    "IVF16384,RaBitQ": [8, 16, 32, 64, 128, 256, 512, 1024],
    "IVF65536_QG32,RaBitQ": [8, 16, 32, 64, 128, 256, 512, 1024],
    "HNSW16": [10, 20, 40, 80, 120, 200, 320, 500],
}
DEFAULT = "sidenote QG32,sidenote RaBitQ,sidenote Flat," + ",".join(ann_peers.SYSTEMS)


def truth_of(data, work, n, queries):
    """Paths of the true neighbours of the first n rows, found by comparing all: .npz for peers, .ivecs for Sidenote."""
    path = os.path.join(work, f"truth-{queries}-{n}")
    if not os.path.exists(path + ".npz"):
        base = np.load(os.path.join(data, "base.npy"), mmap_mode="r")[:n]
        asked = np.load(os.path.join(data, queries + ".npy"))
        near = [np.empty((len(asked), 0)), np.empty((len(asked), 0), np.int64)]
        for first in range(0, n, 1 << 16):
            block = np.asarray(base[first : first + (1 << 16)])
            scores = asked @ block.T
            # Rounding may put the tenth eleventh: take more here, and settle it in double precision.
            keep = np.argpartition(-scores, min(2 * K, len(block) - 1), axis=1)[:, : 2 * K]
            exact = np.einsum("qd,qkd->qk", asked.astype(np.float64), block[keep].astype(np.float64))
            near = [np.hstack([near[0], exact]), np.hstack([near[1], keep + first])]
            order = np.argsort(-near[0], axis=1, kind="stable")[:, : 2 * K]
            near = [np.take_along_axis(part, order, 1) for part in near]
        ids = near[1][:, :K].astype(np.int32)
        np.hstack([np.full((len(ids), 1), K, np.int32), ids]).tofile(path + ".ivecs")
        np.savez(path + ".npz", ids=ids, worst=near[0][:, K - 1])
    return path


def environment(threads):
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"]
    return {**os.environ, **{name: str(threads) for name in names}}


def run(command, threads):
    """The JSON object that a command prints, and the seconds from its start to its first line."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(threads)) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode != 0 or not line:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{errors.decode(errors='replace')[-2000:]}")
    return json.loads(line), seconds


class System:
    """One system over the first n rows."""

    def __init__(self, name, n, args):
        self.name, self.n, self.args = name, n, args
        self.kind = name.removeprefix("sidenote ") if name.startswith("sidenote ") else None
        self.base = os.path.join(args.data, "base.npy")
        # The mapped way to open it searches the index that the other way built.
        self.dir = os.path.join(args.work, f"{n}", name.removesuffix(" mapped").replace(" ", "-").replace(",", "-"))
        peer = None if self.kind else ann_peers.SYSTEMS[name]
        self.efforts = SIDENOTE[self.kind] if self.kind else peer.efforts
        self.label = name if self.kind else f"{name} {importlib.metadata.version(peer.package)}"

    def build(self):
        threads = self.args.build_threads
        if self.kind:
            # Goes on where an interrupted run was cut off.
            command = [self.args.sidenote, "build", self.base, self.dir, "--index", self.kind, "--json", "--resume"]
            if getattr(self.args, "memory", None):
                command += ["--memory", self.args.memory]
        else:
            command = [sys.executable, os.path.join(HERE, "ann_peers.py"), "build", self.name, self.base, self.dir]
        return run(command + ["--rows", str(self.n), "--threads", str(threads)], threads)[0]

    def search(self, queries, threads, *, efforts=None, seconds=None, first=False, recall=False):
        efforts = self.efforts if efforts is None else efforts
        asked = os.path.join(self.args.data, queries + ".npy")
        truth = truth_of(self.args.data, self.args.work, self.n, queries)
        if self.kind:
            command = [self.args.sidenote, "search", self.dir, asked, "--json", "-k", str(K)]
            if efforts != [None]:
                command += ["--breadth", ",".join(map(str, efforts))]
            command += ["--truth", truth + ".ivecs"] if recall else []
        else:
            command = [sys.executable, os.path.join(HERE, "ann_peers.py"), "search", self.name, self.dir, asked]
            command += ["--efforts", ",".join(map(str, efforts)), "--rows", str(self.n)]
            command += ["--base", self.base, "--truth", truth + ".npz"] if recall else []
        command += ["--threads", str(threads)]
        command += ["--seconds", str(self.args.seconds if seconds is None else seconds)]
        return run(command + (["--first"] if first else []), threads)

    def evict(self):
        """Drops the index's files from the page cache."""
        for path in glob.glob(os.path.join(self.dir, "**"), recursive=True):
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Raw:
    """What has been measured, a JSON object a line, so that an interrupted run can go on."""

    def __init__(self, path):
        self.path, self.done = path, {}
        if os.path.exists(path):
            with open(path, encoding="ascii") as lines:
                for line in lines:
                    record = json.loads(line)
                    self.done[tuple(record["key"])] = record["value"]

    def get(self, key, measure):
        if key not in self.done:
            self.done[key] = measure()
            with open(self.path, "a", encoding="ascii") as out:
                print(json.dumps({"key": key, "value": self.done[key]}), file=out)
        return self.done[key]


def machine():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} processors, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def is_mapped(system):
    return system.name.endswith(" mapped")


def measure(n, systems, raw, args):
    """Builds and rounds; returns the rows of ann.json for n vectors."""
    curves = [system for system in systems if not is_mapped(system)]
    builds = {system.name: [] for system in curves}
    for number in range(args.builds):
        for system in curves:
            print(f"{n:,}: building {system.name}", file=sys.stderr, flush=True)
            builds[system.name].append(raw.get(("build", n, system.name, number), system.build))
    built = {name: sorted(times, key=lambda one: one["build_seconds"])[len(times) // 2] for name, times in builds.items()}
    built |= {system.name: built[system.name.removesuffix(" mapped")] for system in systems if is_mapped(system)}
    for number in range(args.rounds):
        print(f"{n:,}: round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        turn = number % len(curves)
        for threads in args.threads:
            for queries in QUERIES:
                for system in curves[turn:] + curves[:turn]:
                    key = ("curve", n, system.name, threads, queries, number)
                    raw.get(key, lambda: system.search(queries, threads, recall=number == 0)[0]["rows"])

    rows = []
    for system in curves:
        for threads in args.threads:
            for queries in QUERIES:
                rounds = [
                    raw.done["curve", n, system.name, threads, queries, number] for number in range(args.rounds)
                ]
                for measured in zip(*rounds):
                    first = measured[0]
                    qps = sorted(row["qps"] for row in measured)
                    rows.append(
                        {
                            "system": system.label,
                            "dataset": args.dataset,
                            "n": n,
                            "dim": built[system.name]["dim"],
                            "threads": threads,
                            "queries": queries,
                            "k": K,
                            "effort": first["breadth"],
                            "calls": first["mode"],
                            "params": built[system.name].get("params", system.kind),
                            "recall_at_10": first["recall"],
                            "qps": round(statistics.median(qps), 1),
                            "qps_lowest": round(qps[0], 1),
                            "qps_highest": round(qps[-1], 1),
                            "rounds": len(qps),
                        }
                    )

    opened = open_and_remember(n, systems, rows, raw, args)
    for system in systems:
        one = built[system.name]
        facts = {
            "build_seconds": round(one["build_seconds"], 2),
            "build_cpu_seconds": round(one["build_cpu_seconds"], 2),
            "build_threads": args.build_threads,
            "build_peak_bytes": one["peak_bytes"],
            "disk_bytes": one["disk_bytes"],
            **opened[system.name],
        }
        mine = [row for row in rows if row["system"] == system.label]
        for row in mine:
            row.update(facts)
        if not mine:
            rows.append({"system": system.label, "dataset": args.dataset, "n": n, "dim": one["dim"], **facts})
    return rows


def open_and_remember(n, systems, rows, raw, args):
    """By system: milliseconds from open to first answer, warm and cold, and memory after 1,000 queries."""
    opened = {system.name: {} for system in systems}
    for system in systems:
        # At the least effort that reaches a recall of .95, or the one that comes nearest.
        label = system.label.replace(" mapped", "")
        mine = [r for r in rows if (r["system"], r["threads"], r["queries"]) == (label, 1, "passages")]
        mine = [r for r in mine if r["calls"] == "batch"]
        reached = [row for row in mine if row["recall_at_10"] >= 0.95] or mine[-1:]
        effort = [reached[0]["effort"] if reached else system.efforts[0]]
        times = {"warm": [], "cold": [], "warm process": [], "cold process": []}
        for number in range(args.rounds):
            for state in ["warm", "cold"]:

                def first():
                    if state == "cold":
                        system.evict()
                    else:
                        system.search("passages", 1, efforts=effort, first=True)
                    result, seconds = system.search("passages", 1, efforts=effort, first=True)
                    return [result["first_answer_ms"], seconds * 1e3]

                inside, outside = raw.get(("open", n, system.name, state, number), first)
                times[state].append(inside)
                times[state + " process"].append(outside)
        found = raw.get(
            ("memory", n, system.name),
            lambda: system.search("passages", 1, efforts=effort, seconds=0)[0],
        )
        before, after = found["memory_before"], found["memory"]
        opened[system.name] = {
            "anon_bytes": after["anon_bytes"] - before["anon_bytes"],
            "file_bytes": after["file_bytes"] - before["file_bytes"],
            "open_ms": round(statistics.median(times["warm"]), 3),
            "open_cold_ms": round(statistics.median(times["cold"]), 3),
            "process_ms": round(statistics.median(times["warm process"]), 2),
            "process_cold_ms": round(statistics.median(times["cold process"]), 2),
        }
    return opened


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("work")
    parser.add_argument("--sidenote", required=True, help="the built example `vectors`")
    parser.add_argument("--systems", default=DEFAULT, help=f"separated by commas (default: {DEFAULT})")
    parser.add_argument("--rows", default="100000", help="how many rows of the base, separated by commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--build-threads", type=int, default=2)
    parser.add_argument("--builds", type=int, default=1, help="build each so often, in alternation, and take the middle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--dataset", default="simplewiki-minilm")
    parser.add_argument("--out", default=RESULTS, help="folder of ann.json, ann.md and ann.svg")
    args = parser.parse_args()
    args.threads = [int(threads) for threads in args.threads.split(",")]
    os.makedirs(args.work, exist_ok=True)
    raw = Raw(os.path.join(args.work, "raw.jsonl"))
    rows = []
    for n in map(int, args.rows.split(",")):
        os.makedirs(os.path.join(args.work, str(n)), exist_ok=True)
        for queries in QUERIES:
            truth_of(args.data, args.work, n, queries)
        systems = [System(name.strip(), n, args) for name in args.systems.split(",")]
        rows += measure(n, systems, raw, args)
    options = f"--rows {args.rows} --rounds {args.rounds} --builds {args.builds} --seconds {args.seconds}"
    if args.systems != DEFAULT:
        options += f" --systems '{args.systems}'"
    result = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "command": f"benches/peers/ann.sh WORK SIMPLEWIKI QUESTIONS {options}",
        "rows": rows,
    }
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, "ann.json"), "w", encoding="ascii") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
    ann_report.write(args.out)


if __name__ == "__main__":
    main()
