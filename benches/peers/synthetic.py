"""Vectors like those of a real corpus, as many as wanted.

    python synthetic.py write BASE.npy DEST --rows 10000000      # DEST/base.npy and DEST/passages.npy
    python synthetic.py check BASE.npy PASSAGES.npy              # are they alike?

The real rows are put into cells of near neighbours (the nearest of random rows, about ROWS_PER_CELL a
cell). A new row is drawn from the normal distribution that has a cell's mean and covariance: the mean
plus a random mixture of the differences of the cell's rows from it, so it departs in the directions in
which the corpus does there, and in no other. SCALE shortens these departures, SPREAD lets them differ in
length from row to row (log-normal), and each row is brought to length 1. Queries are drawn in the same
way: neighbours of real queries among synthetic rows would lie too far off, since no row was drawn near
them.

The three constants were chosen so that the intrinsic dimension (Levina and Bickel's estimate, averaged
as MacKay and Ghahramani do, over the 10 to 20 nearest) and the distances to the first and the tenth
neighbour come out as for held-out passages among as many real rows. `check` shows both, at the full number
of real rows and at a half and an eighth of it, for which nothing was tuned.
"""

import argparse
import os
import sys
import time

import numpy as np

ROWS_PER_CELL = 72
SCALE = 0.93
SPREAD = 0.25
BLOCK = 1 << 16
QUERIES = 1000


class Generator:
    """Draws rows like those of base [rows, dim], of length 1. The same seed gives the same rows."""

    def __init__(self, base, seed):
        self.base, self.seed = base, seed
        count = max(1, len(base) // ROWS_PER_CELL)
        centres = base[np.sort(np.random.default_rng([seed, 0]).choice(len(base), count, replace=False))]
        blocks = range(0, len(base), 1 << 13)
        nearest = np.concatenate([(base[first : first + (1 << 13)] @ centres.T).argmax(1) for first in blocks])
        order = np.argsort(nearest, kind="stable")
        ends = np.searchsorted(nearest[order], np.arange(count + 1))
        cells = [base[np.sort(order[a:b])] for a, b in zip(ends, ends[1:]) if b - a > 1]
        self.parts = np.array([len(cell) for cell in cells]) / sum(map(len, cells))
        self.means = [cell.mean(0) for cell in cells]
        self.departures = [(cell - mean) / np.float32((len(cell) - 1) ** 0.5) for cell, mean in zip(cells, self.means)]

    def block(self, number, count):
        """Rows [count, dim] of block `number`, in random order."""
        rng = np.random.default_rng([self.seed, 1, number])
        rows = np.empty((count, self.base.shape[1]), np.float32)
        places = rng.permutation(count)
        first = 0
        for cell, some in enumerate(rng.multinomial(count, self.parts)):
            if some:
                departures = self.departures[cell]
                mixture = rng.standard_normal((some, len(departures)), np.float32)
                mixture *= SCALE * np.exp(SPREAD * rng.standard_normal((some, 1), np.float32))
                rows[places[first : first + some]] = self.means[cell] + mixture @ departures
                first += some
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(args):
    base = np.load(args.base)
    generator = Generator(base, args.seed)
    os.makedirs(args.dest, exist_ok=True)
    # Block 0 is for queries, and no row comes from it.
    np.save(os.path.join(args.dest, "passages.npy"), generator.block(0, QUERIES))
    path, start = os.path.join(args.dest, "base.npy"), time.time()
    with open(path + ".part", "wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (args.rows, base.shape[1])}
        np.lib.format.write_array_header_1_0(out, header)
        for number, first in enumerate(range(0, args.rows, BLOCK), start=1):
            generator.block(number, min(BLOCK, args.rows - first)).tofile(out)
            if number % 16 == 0:
                print(f"{first + BLOCK:,} rows, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    os.replace(path + ".part", path)


def distances(queries, rows, k):
    """Distances [queries, k] to the nearest rows, nearest first."""
    best = np.empty((len(queries), 0), np.float32)
    for first in range(0, len(rows), BLOCK):
        scores = queries @ rows[first : first + BLOCK].T
        best = np.hstack([best, -np.partition(-scores, k - 1, axis=1)[:, :k]])
    best = -np.sort(-best, axis=1)[:, :k].astype(np.float64)
    return np.sqrt(np.maximum(2 - 2 * best, 1e-12))


def describe(queries, rows):
    """Intrinsic dimension, and mean and deciles of the distances to the first and the tenth neighbour."""
    near = distances(queries, rows, 20)
    near = near[near[:, 0] > 1e-3]  # a query that is also a row has no logarithm
    inverse = [np.log(near[:, k - 1 : k] / near[:, : k - 1]).mean() for k in range(10, 21)]
    found = {"intrinsic dimension": 1 / np.mean(inverse)}
    for which, column in [("1st", 0), ("10th", 9)]:
        found[f"{which}: mean"] = near[:, column].mean()
        for part in (0.1, 0.5, 0.9):
            found[f"{which}: {part:.0%}"] = np.quantile(near[:, column], part)
    return found


def check(args):
    base, asked = np.load(args.base)[: args.rows], np.load(args.passages)
    generator = Generator(base, args.seed)
    drawn = [generator.block(n + 1, min(BLOCK, len(base) - at)) for n, at in enumerate(range(0, len(base), BLOCK))]
    drawn, queries = np.vstack(drawn), generator.block(0, QUERIES)
    for n in (len(base) // 8, len(base) // 2, len(base)):
        real, made = describe(asked, base[:n]), describe(queries, drawn[:n])
        print(f"\n{n:,} rows{'':20} real  synthetic  differ by")
        for name, value in real.items():
            print(f"{name:24} {value:9.3f}  {made[name]:9.3f}  {100 * (made[name] / value - 1):+8.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("write")
    command.set_defaults(run=write)
    command.add_argument("base")
    command.add_argument("dest")
    command.add_argument("--rows", type=int, required=True)
    command = commands.add_parser("check")
    command.set_defaults(run=check)
    command.add_argument("base")
    command.add_argument("passages")
    command.add_argument("--rows", type=int, help="only the first so many rows of the base")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
