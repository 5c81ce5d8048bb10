"""One peer of the nearest-neighbour comparison, in a process of its own.

    python ann_peers.py build SYSTEM BASE.npy DIR --rows N --threads T
    python ann_peers.py search SYSTEM DIR QUERIES.npy --efforts A,B,.. --threads T [--base BASE.npy --truth T.npz]
    python ann_peers.py search SYSTEM DIR QUERIES.npy --efforts A --first

Prints one JSON object, of the form that Sidenote's `vectors` (index/examples/vectors) prints. ann.py
runs both. Vectors are of length 1, so inner product, cosine and squared L2 agree on the order.
"""

import argparse
import json
import os
import sys
import time

import numpy as np

K = 10
M = 16
EF_CONSTRUCTION = 200


class Hnswlib:
    package = "hnswlib"
    efforts = [10, 20, 40, 80, 120, 200, 320, 500, 800]
    params = f"M={M} efConstruction={EF_CONSTRUCTION}"

    def __init__(self, dim, threads):
        import hnswlib

        self.index, self.threads = hnswlib.Index("ip", dim), threads

    def build(self, rows, folder):
        self.index.init_index(len(rows), ef_construction=EF_CONSTRUCTION, M=M, random_seed=0)
        self.index.add_items(rows, num_threads=self.threads)
        self.index.save_index(os.path.join(folder, "index"))

    def open(self, folder):
        self.index.load_index(os.path.join(folder, "index"))

    def set(self, effort):
        self.index.set_ef(int(effort))

    def search(self, queries):
        return self.index.knn_query(queries, K, num_threads=self.threads)[0]


class Faiss:
    package = "faiss-cpu"
    efforts = [10, 20, 40, 80, 120, 200, 320, 500, 800]
    factory = "HNSW16,Flat"
    mapped = False

    def __init__(self, dim, threads):
        import faiss

        faiss.omp_set_num_threads(threads)
        self.faiss, self.dim = faiss, dim

    @property
    def params(self):
        return f"{self.factory} efConstruction={EF_CONSTRUCTION}"

    def build(self, rows, folder):
        index = self.faiss.index_factory(self.dim, self.factory, self.faiss.METRIC_INNER_PRODUCT)
        self.faiss.downcast_index(index).hnsw.efConstruction = EF_CONSTRUCTION
        index.train(rows)
        index.add(rows)
        self.faiss.write_index(index, os.path.join(folder, "index"))

    def open(self, folder):
        flags = self.faiss.IO_FLAG_MMAP_IFC if self.mapped else 0
        self.owner = self.faiss.read_index(os.path.join(folder, "index"), flags)
        self.index = self.faiss.downcast_index(self.owner)  # a view: the owner must live on

    def set(self, effort):
        self.index.hnsw.efSearch = int(effort)

    def search(self, queries):
        return self.index.search(queries, K)[1]


class FaissMapped(Faiss):
    mapped = True


class FaissSq8(Faiss):
    factory = "HNSW16,SQ8"


class Usearch:
    package = "usearch"
    efforts = [10, 20, 40, 80, 120, 200, 320, 500, 800]
    dtype = "f32"

    def __init__(self, dim, threads):
        from usearch.index import Index

        self.threads = threads
        options = {"ndim": dim, "metric": "ip", "dtype": self.dtype, "connectivity": M}
        self.index = Index(**options, expansion_add=EF_CONSTRUCTION)

    @property
    def params(self):
        return f"{self.dtype} connectivity={M} expansion_add={EF_CONSTRUCTION}"

    def build(self, rows, folder):
        self.index.add(np.arange(len(rows)), rows, threads=self.threads)
        self.index.save(os.path.join(folder, "index"))

    def open(self, folder):
        self.index.view(os.path.join(folder, "index"))

    def set(self, effort):
        self.index.expansion_search = int(effort)

    def search(self, queries):
        return self.index.search(queries, K, threads=self.threads).keys.reshape(len(queries), -1)


class UsearchBf16(Usearch):
    dtype = "bf16"


class Symqg:
    package = "rabitqlib"
    efforts = [10, 20, 30, 50, 80, 120, 200, 320, 500]
    params = f"SymphonyQG degree=32 ef={EF_CONSTRUCTION} init=pipnn"

    def __init__(self, dim, threads):
        import rabitqlib

        self.kind, self.dim, self.threads = rabitqlib.SymqgIndex, dim, threads

    def build(self, rows, folder):
        index = self.kind(self.dim, 32, "ip")
        index.build(rows, EF_CONSTRUCTION, self.threads, "pipnn")
        index.save(os.path.join(folder, "index"))

    def open(self, folder):
        self.index = self.kind.load(os.path.join(folder, "index"))

    def set(self, effort):
        self.effort = int(effort)

    def search(self, queries):
        return self.index.search(queries, K, self.effort, self.threads)[0]


class Scann:
    package = "scann"
    # Leaves searched, as a part of all, and rows scored exactly.
    efforts = ["0.01:50", "0.02:100", "0.04:100", "0.06:100", "0.1:100", "0.15:150", "0.2:200", "0.3:200", "0.5:300", "0.8:500"]
    params = "tree AH2 threshold=0.2"

    def __init__(self, dim, threads):
        import scann

        self.scann, self.threads = scann.scann_ops_pybind, threads

    def build(self, rows, folder):
        leaves = max(16, round(1.6 * len(rows) ** 0.5))
        builder = self.scann.builder(rows, K, "dot_product").set_n_training_threads(self.threads)
        builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(len(rows), 250_000))
        searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        searcher.serialize(folder, relative_path=True)
        with open(os.path.join(folder, "leaves"), "w", encoding="ascii") as out:
            out.write(str(leaves))

    def open(self, folder):
        # The list of files names them without their folder.
        self.searcher = self.scann.load_searcher(folder)
        with open(os.path.join(folder, "leaves"), encoding="ascii") as text:
            self.leaves = int(text.read())
        self.searcher.set_num_threads(self.threads)

    def set(self, effort):
        part, rows = effort.split(":")
        self.arguments = (K, int(rows), max(1, round(float(part) * self.leaves)))

    def search(self, queries):
        if len(queries) == 1:
            return self.searcher.search(queries[0], *self.arguments)[0][None]
        if self.threads > 1:
            return self.searcher.search_batched_parallel(queries, *self.arguments)[0]
        return self.searcher.search_batched(queries, *self.arguments)[0]


SYSTEMS = {
    "hnswlib": Hnswlib,
    "faiss HNSW": Faiss,
    "faiss HNSW mapped": FaissMapped,
    "faiss HNSW SQ8": FaissSq8,
    "usearch": Usearch,
    "usearch bf16": UsearchBf16,
    "rabitqlib SymphonyQG": Symqg,
    "scann": Scann,
}


def memory():
    """Bytes of the process's own memory, of mapped files, and of the most there ever was."""
    with open("/proc/self/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    names = {"anon_bytes": "RssAnon", "file_bytes": "RssFile", "peak_bytes": "VmHWM"}
    return {key: int(fields[name].split()[0]) * 1024 for key, name in names.items()}


def recall_of(found, queries, base, worst):
    """The mean part of each query's K best that was found; a row that scores as high as the K-th counts."""
    right = 0
    for ids, query, limit in zip(found, queries.astype(np.float64), worst):
        ids = np.unique(ids[(ids >= 0) & (ids < len(base))])
        right += int((base[ids].astype(np.float64) @ query >= limit - 1e-6).sum())
    return right / (K * len(queries))


def build(args):
    rows = np.ascontiguousarray(np.load(args.base, mmap_mode="r")[: args.rows])
    system = SYSTEMS[args.system](rows.shape[1], args.threads)
    os.makedirs(args.dir, exist_ok=True)
    start, cpu = time.perf_counter(), time.process_time()
    system.build(rows, args.dir)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    files = [os.path.join(args.dir, name) for name in os.listdir(args.dir)]
    return {
        "n": rows.shape[0],
        "dim": rows.shape[1],
        "threads": args.threads,
        "params": system.params,
        "build_seconds": seconds,
        "build_cpu_seconds": cpu,
        "disk_bytes": sum(map(os.path.getsize, files)),
        **memory(),
    }


def search(args):
    queries = np.load(args.queries)
    efforts = args.efforts.split(",")
    system = SYSTEMS[args.system](queries.shape[1], args.threads)
    before = memory()
    start = time.perf_counter()
    system.open(args.dir)
    open_ms = (time.perf_counter() - start) * 1e3
    system.set(efforts[0])
    system.search(queries[:1])
    first_ms = (time.perf_counter() - start) * 1e3
    result = {"k": K, "queries": len(queries), "open_ms": open_ms, "first_answer_ms": first_ms}
    if args.first:
        return result
    for first in range(0, min(1000, len(queries))):
        system.search(queries[first : first + 1])
    result |= {"memory_before": before, "memory": memory(), "rows": []}
    base = np.load(args.base, mmap_mode="r")[: args.rows] if args.truth else None
    for effort in efforts:
        system.set(effort)
        found = system.search(queries)
        passes, start, cpu = 0, time.perf_counter(), time.process_time()
        while passes == 0 or time.perf_counter() - start < args.seconds:
            system.search(queries)
            passes += 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        row = {"breadth": effort, "threads": args.threads, "mode": "batch"}
        row |= {"qps": passes * len(queries) / seconds, "cpu_per_wall": cpu / seconds}
        if args.truth:
            row["recall"] = recall_of(np.asarray(found, np.int64), queries, base, np.load(args.truth)["worst"])
        result["rows"].append(row)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build")
    command.set_defaults(run=build)
    command.add_argument("system", choices=SYSTEMS)
    command.add_argument("base")
    command.add_argument("dir")
    command = commands.add_parser("search")
    command.set_defaults(run=search)
    command.add_argument("system", choices=SYSTEMS)
    command.add_argument("dir")
    command.add_argument("queries")
    command.add_argument("--efforts", required=True)
    command.add_argument("--seconds", type=float, default=0.5)
    command.add_argument("--first", action="store_true", help="stop at the first answer")
    command.add_argument("--base", help="the rows, to count what was found")
    command.add_argument("--truth", help="what ann.py says of the true neighbours")
    for command in commands.choices.values():
        command.add_argument("--rows", type=int, help="the first so many rows of the base")
        command.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    # Peers write what they do to standard output; only the result belongs there.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(args.run(args), out)
    out.write("\n")
    out.flush()
    sys.stdout.flush()
    # Freeing a large index takes seconds and tells nothing.
    os._exit(0)


if __name__ == "__main__":
    main()
