"""Training steps a second of Sidenote beside PyTorch: the same models, data and order, in alternation.

    python train.py TRAIN_PEER [--models decoder:256:4,...] [--batch 4] [--rounds 3] [--steps 1] [--systems ...] [--dtype f32|bf16]

TRAIN_PEER is the program made from examples/train_peer.rs. Each system runs as a process of its own; they take turns,
some steps each, and the first turn is left out. Rows go to benches/results/train.json, from which train_report.py
makes the table and the drawing. A plain decoder starts from the same weights everywhere, and its losses are compared.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

import train_report

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENS, VOCABULARY = 512, 32_768


class Worker:
    def __init__(self, command, dtype):
        # Fewer threads than processors would be slower for either; what they choose themselves is right.
        environment = {**os.environ, "SIDENOTE_PRECISION": dtype}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def operations(kind, width, layers):
    """Multiplications and additions a token needs, forward and backward; None where that is not worked out."""
    if kind != "decoder":
        return None
    inner = -(-(width * 8 // 3) // 8) * 8
    weights = layers * (4 * width * width + 3 * width * inner) + VOCABULARY * width
    return 6 * weights + 6 * layers * TOKENS * width


def processor():
    with open("/proc/cpuinfo", encoding="ascii") as info:
        names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads, {platform.system()}" if names else platform.platform()


def measure(options, kind, width, layers):
    import torch

    version = torch.__version__.split("+")[0]
    shape = [kind, str(width), str(layers), str(options.batch)]
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.safetensors")
        file = [weights] if kind == "decoder" else []
        workers = {"sidenote": Worker([options.program, *shape, *file], options.dtype)}
        rates = [workers["sidenote"].ask(-1)["gflops"]]
        peer = "PyTorch" if kind == "decoder" else "retro-pytorch, PyTorch"
        for mode in options.systems.split(","):
            script = [sys.executable, os.path.join(HERE, "train_torch.py"), *shape, mode, *file]
            workers[f"{peer} {version} {mode}"] = Worker(script, options.dtype)
        times, losses, peaks = {}, {}, {}
        for turn in range(options.rounds + 1):
            for system, worker in list(workers.items()):
                try:
                    answer = worker.ask(options.steps)
                except RuntimeError as error:
                    if system == "sidenote":
                        raise
                    # A mode that cannot run this model is left out; what it said went to standard error.
                    print(f"{system} is left out: {error}", file=sys.stderr)
                    del workers[system]
                    times.pop(system, None)
                    continue
                losses.setdefault(system, []).extend(answer["losses"])
                peaks[system] = answer["peak_bytes"]
                if turn > 0:
                    times.setdefault(system, []).extend(answer["seconds"])
            rates.append(workers["sidenote"].ask(-1)["gflops"])
            print(f"{' '.join(shape)}: turn {turn} of {options.rounds}", file=sys.stderr)
        for worker in workers.values():
            worker.close()
    if kind == "decoder":
        for system, values in losses.items():
            worst = max(abs(a - b) for a, b in zip(values, losses["sidenote"]))
            if worst > {"f32": 1e-3, "bf16": 3e-2}[options.dtype]:
                raise SystemExit(f"{system}: losses differ from Sidenote's by {worst}: {values} {losses['sidenote']}")
    rows = []
    for system, seconds in times.items():
        tokens = options.batch * TOKENS
        median = statistics.median(seconds)
        row = {
            "system": system,
            "model": f"{kind} d={width} L={layers}" + (", bf16" if options.dtype == "bf16" else ""),
            "dtype": options.dtype,
            "machine": processor() + (f" ({options.note})" if options.note else ""),
            "date": datetime.date.today().isoformat(),
            "batch": f"{options.batch} x {TOKENS}",
            "tokens_per_second": round(tokens / median, 1),
            "tokens_per_second_lowest": round(tokens / max(seconds), 1),
            "tokens_per_second_highest": round(tokens / min(seconds), 1),
            "steps": len(seconds),
            "peak_bytes": peaks[system],
            "product_gflops": round(statistics.median(rates), 1),
        }
        needed = operations(kind, width, layers)
        if needed:
            row["gflops"] = round(needed * tokens / median / 1e9, 1)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--models", default="decoder:256:4,decoder:512:8,retro:256:4,retro:512:8")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--systems", default="eager,compile", help="modes of PyTorch")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"], help="bf16: mixed precision")
    parser.add_argument("--results", default=os.path.join(HERE, "..", "results"))
    parser.add_argument("--note", default="", help="about the machine, such as: others at work")
    options = parser.parse_args()
    path = os.path.join(options.results, "train.json")
    rows = []
    if os.path.exists(path):
        with open(path, encoding="ascii") as text:
            rows = json.load(text)["rows"]
    for model in options.models.split(","):
        kind, width, layers = model.split(":")
        new = measure(options, kind, int(width), int(layers))
        # Rows of models that are not measured this time stay.
        rows = [row for row in rows if row["model"] != new[0]["model"]] + new
        shown = ["train.py", *(argument for argument in sys.argv[2:])]
        result = {
            "machine": processor() + (f" ({options.note})" if options.note else ""),
            "date": datetime.date.today().isoformat(),
            "command": "benches/peers/" + " ".join(shown),
            "rows": rows,
        }
        with open(path, "w", encoding="ascii") as out:
            json.dump(result, out, indent=1)
            out.write("\n")
    train_report.write(options.results)


if __name__ == "__main__":
    main()
