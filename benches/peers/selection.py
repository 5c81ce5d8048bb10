"""Choosing out of a million rows with Sidenote, beside DEFT's own index in faiss on the same vectors.

    python selection.py WORK POOL --sidenote PROGRAM --target FILE [--target FILE ...] [--rows 1000000] [--limit 600]

POOL is a folder that `sidenote pool build` made; the FILEs hold examples (lines with "input"), of whose distinct ones 1,000 are
drawn as queries. The pool of 1,000,000 rows is POOL's own rows and then synthetic ones, marked so: of two rows of one task, drawn at
random, the first half of the words of the one and the second half of the other. `sidenote select --method deft -k 500` runs twice:
once with the vectors to make, once with them at hand, which is what is measured (pool and vectors read from disk, the search, the
choice and its writing). With the built-in encoder vectors have 256 numbers. `task-aware` is run in the same way; it compares 512.

DEFT's index is `OPQ8_512,HNSW512,PQ8` with efConstruction 200 and efSearch 128 (its scripts/index_p3_train_reps.py), trained on
all rows. Its build may take LIMIT seconds: n is 15,625, then four times as many, until a build does not end. For each n Sidenote
chooses from the same first n rows. Recall is the share of the 500 nearest rows by exact distance (faiss's IndexFlatL2) that were
found, mean over the queries.

Anonymous memory is the greatest RssAnon of Sidenote's process, looked at 20 times a second; of faiss what its process has more of
after building and searching. Rows go to benches/results/select.json and, as a table, to select.md. What is there in WORK is not
made again. Needs numpy and faiss-cpu (1.15.1 was used).
"""

import argparse
import datetime
import glob
import json
import multiprocessing
import os
import random
import subprocess
import time

import numpy as np

from train import processor

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "..", "results")
QUERIES, K, SMALLEST = 1000, 500, 15_625
DEFT = "OPQ8_512,HNSW512,PQ8"


def write_pool(options, path):
    """The first rows of the pool, and synthetic ones up to the number wanted; how many are real."""
    parts = sorted(glob.glob(f"{options.pool}/instances-*.jsonl"))
    real = [line.rstrip("\n") for part in parts for line in open(part, encoding="utf-8")][: options.rows]
    if os.path.exists(path):
        return len(real)
    # Rows are shuffled: the first n are like all of them.
    rng = random.Random(1)
    rng.shuffle(real)
    of_task = {}
    for number, line in enumerate(real):
        of_task.setdefault(json.loads(line).get("task"), []).append(number)
    tasks, sizes = list(of_task), [len(rows) for rows in of_task.values()]
    with open(path + ".part", "w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in real)
        for _ in range(options.rows - len(real)):
            rows = of_task[rng.choices(tasks, sizes)[0]]
            a, b = (json.loads(real[rng.choice(rows)]) for _ in range(2))
            for name in ("input", "own"):
                if name in a and name in b:
                    first, second = a[name].split(" "), b[name].split(" ")
                    a[name] = " ".join(first[: len(first) // 2] + second[len(second) // 2 :])
            out.write(json.dumps({**a, "source": "synthetic"}, ensure_ascii=False) + "\n")
    os.replace(path + ".part", path)
    return len(real)


def write_queries(options, path):
    inputs = {}
    for file in options.target:
        with open(file, encoding="utf-8") as lines:
            inputs.update((json.loads(line)["input"], None) for line in lines if line.strip())
    inputs = list(inputs)
    random.Random(1).shuffle(inputs)
    assert len(inputs) >= QUERIES, f"{len(inputs)} distinct examples; name more files"
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"input": text}, ensure_ascii=False) + "\n" for text in inputs[:QUERIES])


def anonymous(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


def choose(options, method, pool, vectors, out, targets=None):
    """One selection: seconds, anonymous bytes and each query's neighbours."""
    targets = targets or f"{options.work}/queries.jsonl"
    command = [options.sidenote, "select", pool, "--method", method, "--target", targets, "-k", K, "-n", K]
    command += ["--vectors", vectors, "--out", f"{out}.jsonl", "--scores", f"{out}.scores", "--quiet"]
    begun, most = time.monotonic(), 0
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.05)
    assert process.returncode == 0, command
    seconds = time.monotonic() - begun
    with open(f"{out}.scores") as lines:
        return seconds, most, [json.loads(line)["ids"][:K] for line in lines]


def kept(folder):
    """The vectors that Sidenote has kept, `[rows, dim]`, and their bytes on disk."""
    files = sorted(glob.glob(f"{folder}/part-*/vectors.*.f32"))
    dim = next(
        value for value in find(json.load(open(os.path.join(os.path.dirname(files[0]), "manifest.json"))), "dim")
    )
    return np.concatenate([np.fromfile(file, np.float32) for file in files]).reshape(-1, dim), sum(map(os.path.getsize, files))


def find(tree, name):
    """The values called `name` in a JSON document."""
    if isinstance(tree, dict):
        if name in tree:
            yield tree[name]
        for value in tree.values():
            yield from find(value, name)


def faiss_run(base_file, query_file, out):
    """In a process of its own, which may be ended: builds DEFT's index, searches it and tells."""
    import faiss

    base, queries = np.load(base_file), np.load(query_file)
    before = anonymous(os.getpid())
    index = faiss.index_factory(base.shape[1], DEFT)
    hnsw = faiss.downcast_index(index.index).hnsw
    hnsw.efConstruction, hnsw.efSearch = 200, 128
    begun = time.monotonic()
    index.train(base)
    index.add(base)
    built = time.monotonic()
    _, found = index.search(queries, K)
    searched = time.monotonic()
    memory = anonymous(os.getpid()) - before
    faiss.write_index(index, out + ".index")
    result = {"build_seconds": built - begun, "seconds": searched - built, "anon_bytes": memory}
    with open(out + ".json", "w") as file:
        json.dump({**result, "disk_bytes": os.path.getsize(out + ".index"), "found": found.tolist()}, file)


def recall(found, exact):
    return round(float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, exact)])), 4)


def measure(options, lines):
    """Appends to `lines` and writes them as they come."""
    import faiss

    work = options.work
    pool = f"{work}/pool.jsonl"
    real = write_pool(options, pool)
    write_queries(options, f"{work}/queries.jsonl")
    # A pool of the queries has their vectors.
    questions = f"{work}/questions.jsonl"
    with open(f"{work}/queries.jsonl") as rows, open(questions, "w") as out:
        out.writelines(json.dumps({**json.loads(row), "target": "none"}) + "\n" for row in rows)
    choose(options, "deft", questions, f"{work}/question-vectors", f"{work}/question-chosen")
    queries, _ = kept(f"{work}/question-vectors")
    np.save(f"{work}/queries.npy", queries)
    peer = True
    sizes = [SMALLEST * 4**power for power in range(10) if SMALLEST * 4**power < options.rows] + [options.rows]
    for n in sizes:
        some = pool if n == options.rows else f"{work}/pool-{n}.jsonl"
        if not os.path.exists(some):
            with open(pool, encoding="utf-8") as rows, open(some, "w", encoding="utf-8") as out:
                out.writelines(line for line, _ in zip(rows, range(n)))
        common = {"dataset": "p3 + sni", "n": n, "real_rows": min(real, n), "queries": QUERIES, "k": K, "threads": os.cpu_count()}
        exact = None
        for method in ("deft", "task-aware"):
            folder, out = f"{work}/{method}-{n}", f"{work}/{method}-{n}-chosen"
            made, _, _ = choose(options, method, some, folder, out)
            seconds, memory, found = choose(options, method, some, folder, out)
            base, size = kept(folder)
            line = {"system": f"sidenote {method}", **common, "dim": base.shape[1], "seconds": round(seconds, 1)}
            line |= {"with_embedding_seconds": round(made, 1), "anon_bytes": memory, "disk_bytes": size}
            if method == "deft":
                flat = faiss.IndexFlatL2(base.shape[1])
                flat.add(base)
                exact = flat.search(queries, K)[1]
                np.save(f"{work}/base.npy", base)
                line["recall_at_500"] = recall(found, exact)
                del flat
            del base
            lines.append(line)
            write(options, lines)
        if not peer:
            continue
        out = f"{work}/faiss-{n}"
        process = multiprocessing.get_context("spawn").Process(
            target=faiss_run, args=(f"{work}/base.npy", f"{work}/queries.npy", out)
        )
        process.start()
        process.join(options.limit)
        line = {"system": f"faiss {faiss.__version__} {DEFT}", **common, "dim": queries.shape[1]}
        if process.is_alive():
            process.kill()
            process.join()
            peer = False
            lines.append({**line, "remark": f"the build did not end in {options.limit} s"})
        else:
            assert process.exitcode == 0
            with open(out + ".json") as file:
                result = json.load(file)
            line["recall_at_500"] = recall(result.pop("found"), exact)
            lines.append({**line, **{name: round(value, 1) for name, value in result.items()}})
        write(options, lines)


def write(options, lines):
    result = {"machine": processor(), "date": datetime.date.today().isoformat(), "command": options.command, "rows": lines}
    with open(os.path.join(RESULTS, "select.json"), "w") as out:
        json.dump(result, out, indent=1)
        out.write("\n")

    def show(line, name, scale=1, digits=0):
        return f"{line[name] / scale:,.{digits}f}" if name in line else ""

    text = [f"Written by `benches/peers/selection.py`, whose head says what was measured. {result['machine']}; {result['date']}.", ""]
    text += [f"`{options.command}`", "", f"{QUERIES:,} queries, {K} neighbours of each.", ""]
    text += ["| system | rows | real | dim | build s | choose or search s | with embedding s | recall@500 | anonymous MB | disk MB |"]
    text += ["|---" * 10 + "|"]
    for line in lines:
        cells = [line["system"], f"{line['n']:,}", f"{line['real_rows']:,}", str(line["dim"])]
        cells += [line.get("remark") or show(line, "build_seconds", 1, 1), show(line, "seconds", 1, 1)]
        cells += [show(line, "with_embedding_seconds", 1, 1), show(line, "recall_at_500", 1, 4)]
        cells += [show(line, "anon_bytes", 1e6), show(line, "disk_bytes", 1e6)]
        text.append("| " + " | ".join(cells) + " |")
    with open(os.path.join(RESULTS, "select.md"), "w") as out:
        out.write("\n".join(text) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("pool")
    parser.add_argument("--sidenote", required=True, help="the program")
    parser.add_argument("--target", action="append", required=True, help="a file of examples")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=600, help="seconds that a build of faiss may take")
    options = parser.parse_args()
    options.command = "benches/peers/selection.py WORK POOL --target " + " ".join(map(os.path.basename, options.target)) + f" --limit {options.limit}"
    os.makedirs(options.work, exist_ok=True)
    measure(options, [])


if __name__ == "__main__":
    main()
