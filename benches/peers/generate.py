"""Tokens a second of Sidenote beside transformers and llama.cpp: the same weights, prompts and threads, in turns.

    python generate.py GENERATE_PEER MODEL.gguf FOLDER [--batches 1,8] [--prompt 128] [--tokens 128] [--rounds 5]

GENERATE_PEER is the program made from examples/generate_peer.rs; FOLDER holds what generate_models.py made of MODEL.gguf. Each
system runs as a process of its own; they take turns, and the first turn is left out. Rows go to
benches/results/generate.json and, as a table, to generate.md.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

from train import Worker, processor

HERE = os.path.dirname(os.path.abspath(__file__))


def version(package):
    from importlib.metadata import version

    return version(package)


def agree(a, b):
    """How many tokens two greedy continuations have in common from their beginning, of how many."""
    common = 0
    for one, other in zip(a, b):
        for x, y in zip(one, other):
            if x != y:
                break
            common += 1
    return common, sum(len(row) for row in a)


def measure(options, batch):
    threads = str(options.threads)
    script = [sys.executable, os.path.join(HERE, "generate_peers.py")]
    f32 = os.path.join(options.folder, "model-f32.gguf")
    quantised = os.path.basename(options.model).split(".")[-2]
    commands = {
        ("sidenote", quantised): [options.program, options.model],
        (f"llama.cpp {version('llama-cpp-python')}", quantised): [*script, "llama", options.model, threads],
        ("sidenote", "f32"): [options.program, f32],
        (f"llama.cpp {version('llama-cpp-python')}", "f32"): [*script, "llama", f32, threads],
        (f"transformers {version('transformers')}", "f32"): [*script, "transformers", options.folder, threads],
    }
    os.environ["RAYON_NUM_THREADS"] = threads
    workers = {system: Worker(command) for system, command in commands.items()}
    question = f"{batch} {options.prompt} {options.tokens}"
    answers, rates = {}, []
    for turn in range(options.rounds + 1):
        rates.append(workers["sidenote", quantised].ask("bandwidth")["bytes_per_second"])
        for system, worker in workers.items():
            answer = worker.ask(question)
            if turn > 0:
                answers.setdefault(system, []).append(answer)
        print(f"batch {batch}: turn {turn} of {options.rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    rows = []
    for (system, precision), runs in answers.items():
        prompts = [batch * options.prompt / run["prompt_seconds"] for run in runs]
        steps = [batch * options.tokens / run["seconds"] for run in runs]
        reference = answers["sidenote", precision][0]["tokens"]
        common, total = agree(runs[0]["tokens"], reference)
        rows.append({
            "system": system,
            "weights": precision,
            "batch": batch,
            "prompt": options.prompt,
            "tokens": options.tokens,
            "prompt_tokens_per_second": round(statistics.median(prompts), 1),
            "tokens_per_second": round(statistics.median(steps), 1),
            "tokens_per_second_lowest": round(min(steps), 1),
            "tokens_per_second_highest": round(max(steps), 1),
            "rounds": len(runs),
            "peak_bytes": runs[-1]["peak_bytes"],
            "tokens_as_sidenote": f"{common} of {total}",
            "bandwidth_bytes_per_second": round(statistics.median(rates)),
        })
    return rows


def table(result):
    rows = result["rows"]
    lines = ["# Greedy generation, side by side", ""]
    lines += [f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += [
        f"{result['model']}, {result['threads']} threads. Prompts of {rows[0]['prompt']} tokens, continued by "
        f"{rows[0]['tokens']}; medians over {rows[0]['rounds']} rounds in turns, prompts and steps timed apart.",
        "",
        "| batch | weights | system | prompt tokens/s | tokens/s, median | lowest to highest | peak MB | tokens as Sidenote's |",
        "|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        spread = f"{row['tokens_per_second_lowest']:,.0f} to {row['tokens_per_second_highest']:,.0f}"
        cells = [str(row["batch"]), row["weights"], row["system"], f"{row['prompt_tokens_per_second']:,.0f}"]
        cells += [f"{row['tokens_per_second']:,.0f}", spread, f"{row['peak_bytes'] / 1e6:,.0f}", row["tokens_as_sidenote"]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Aims", ""]
    lines += ["| batch | Sidenote to | prompt | steps | aim | met |", "|--:|---|--:|--:|--:|---|"]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        here = [row for row in rows if row["batch"] == batch]
        own = {row["weights"]: row for row in here if row["system"] == "sidenote"}
        for peer in (row for row in here if row["system"] != "sidenote"):
            aim = 2.0 if peer["system"].startswith("transformers") else 1.0
            for weights, mine in own.items():
                if aim == 1.0 and weights != peer["weights"]:
                    continue
                prompt = mine["prompt_tokens_per_second"] / peer["prompt_tokens_per_second"]
                steps = mine["tokens_per_second"] / peer["tokens_per_second"]
                met = "yes" if min(prompt, steps) >= aim else "no"
                name = f"{peer['system']}, {peer['weights']}; Sidenote {weights}"
                lines.append(f"| {batch} | {name} | {prompt:.2f} | {steps:.2f} | {aim:g} | {met} |")
    lines += ["", "## What is possible", ""]
    for row in (row for row in rows if row["system"] == "sidenote"):
        size = result["weight_bytes"][row["weights"]]
        floor = size / row["bandwidth_bytes_per_second"]
        step = row["batch"] / row["tokens_per_second"]
        lines.append(
            f"- batch {row['batch']}, {row['weights']}: every step reads {size / 1e6:.0f} MB of weights, which takes "
            f"{1e3 * floor:.2f} ms at the {row['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s that both threads read "
            f"together; a step takes {1e3 * step:.2f} ms, {floor / step:.0%} of that rate."
        )
    return "\n".join(lines) + "\n"


def weight_bytes(options):
    import gguf

    tensors = gguf.GGUFReader(options.model).tensors
    quantised = os.path.basename(options.model).split(".")[-2]
    return {
        quantised: int(sum(tensor.n_bytes for tensor in tensors)),
        "f32": int(sum(4 * tensor.n_elements for tensor in tensors)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", default=os.path.join(HERE, "..", "results"))
    parser.add_argument("--note", default="", help="about the machine, such as: others at work")
    options = parser.parse_args()
    path = os.path.join(options.results, "generate.json")
    rows = []
    if os.path.exists(path):
        with open(path, encoding="ascii") as text:
            rows = json.load(text)["rows"]
    for batch in (int(batch) for batch in options.batches.split(",")):
        # Rows of batches that are not measured this time stay.
        rows = [row for row in rows if row["batch"] != batch] + measure(options, batch)
        result = {
            "machine": processor() + (f" ({options.note})" if options.note else ""),
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["benches/peers/generate.py", *sys.argv[4:]]),
            "model": os.path.basename(options.model),
            "threads": options.threads,
            "weight_bytes": weight_bytes(options),
            "rows": sorted(rows, key=lambda row: row["batch"]),
        }
        with open(path, "w", encoding="ascii") as out:
            json.dump(result, out, indent=1)
            out.write("\n")
        with open(os.path.join(options.results, "generate.md"), "w", encoding="utf-8") as out:
            out.write(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
