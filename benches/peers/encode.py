"""Texts a second that Sidenote, onnxruntime and sentence-transformers encode with MiniLM, in alternation: in f32, and the first
two also in 8 bits.

    python encode.py SIDENOTE ENCODE_PEER MODEL TEXT.jsonl WORK [--threads 2] [--rounds 5] [--texts 160]

SIDENOTE is the program, ENCODE_PEER is made from examples/encode_peer.rs. The texts are cut out of TEXT.jsonl's articles: chunks of
64 tokens, and pieces of 5 to 250. WORK takes the model exported to ONNX, both in 8 bits (`sidenote encoder quantise`;
onnxruntime's `quantize_dynamic` by row), and the texts. Each system runs as a process
of its own; a peer first tries its sizes of batches, and the fastest goes into the rounds. Vectors are compared. Writes
benches/results/encode.json and encode.md.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OURS, OURS_8 = "sidenote", "sidenote, 8 bits"
BATCHES = [1, 2, 4, 8, 16, 32]
# Multiplications and additions with weights, a token: 6 layers of 4 x 384^2 and 2 x 384 x 1536 weights.
OPERATIONS = 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
SETS = {"chunks": "chunks of 64 tokens", "mixed": "5 to 250 tokens"}


class Worker:
    def __init__(self, command, threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def pieces(model, articles, number):
    """The texts, and how many tokens each set has."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    choose = random.Random(0)
    lengths = {"chunks": lambda: 64, "mixed": lambda: choose.randint(5, 250)}
    with open(articles, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    sets, tokens = {}, {}
    for name, length in lengths.items():
        found = []
        for text in texts:
            offsets = tokenizer.encode(text, add_special_tokens=False).offsets
            at, n = 0, length()
            while at + n <= len(offsets):
                found.append(text[offsets[at][0] : offsets[at + n - 1][1]])
                at, n = at + n, length()
        choose.shuffle(found)
        sets[name] = found[:number]
        tokens[name] = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(sets[name]))
    return sets, tokens


def export(model, file):
    """The network as ONNX, f32, any batch and length."""
    import torch
    import transformers

    network = transformers.BertModel.from_pretrained(model, attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, input_ids, attention_mask):
            return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(5, 1000, (3, 17))
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["states"]}
    axes = {name: {0: "batch", 1: "tokens"} for name in ["input_ids", "attention_mask", "states"]}
    torch.onnx.export(
        States(), (ids, torch.ones_like(ids)), file, dynamo=False, dynamic_axes=axes, opset_version=17, **names
    )


def processor():
    with open("/proc/cpuinfo", encoding="ascii") as info:
        names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads, {platform.system()}" if names else platform.platform()


def apart(a, b):
    return max(abs(x - y) for left, right in zip(a, b) for x, y in zip(left, right))


def measure(options, files):
    import onnxruntime
    import sentence_transformers

    model, model_8, texts, onnx, onnx_8, tokens, numbers = files
    script = [sys.executable, os.path.join(HERE, "encode_python.py")]
    common = [model, texts, str(options.threads)]
    ort = f"onnxruntime {onnxruntime.__version__}"
    workers = {
        OURS: Worker([options.program, model, texts], options.threads),
        OURS_8: Worker([options.program, model_8, texts], options.threads),
    }
    for bits, file in (("", onnx), (", 8 bits", onnx_8)):
        named = {f"products on {options.threads} threads": "onnxruntime", "a batch a thread": "onnxruntime-workers"}
        for what, kind in named.items():
            workers[f"{ort}, {what}{bits}"] = Worker([*script, kind, *common, file], options.threads)
    workers |= {
        f"sentence-transformers {sentence_transformers.__version__}": Worker(
            [*script, "sentence-transformers", *common], options.threads
        ),
    }
    rates, rows = [workers[OURS].ask("rate")["gflops"]], []
    for name in SETS:
        lines = {}
        for system, worker in workers.items():
            tried = {batch: worker.ask(f"{name} {batch}")["seconds"] for batch in BATCHES if system not in (OURS, OURS_8)}
            lines[system] = f"{name} {min(tried, key=tried.get)}" if tried else name
        answers = {system: [] for system in workers}
        for turn in range(options.rounds + 1):
            for system, worker in workers.items():
                answer = worker.ask(lines[system])
                if turn > 0:
                    answers[system].append(answer)
            print(f"{name}: turn {turn} of {options.rounds}", file=sys.stderr)
        rates.append(workers[OURS].ask("rate")["gflops"])
        for system, own in answers.items():
            median = statistics.median(answer["seconds"] for answer in own)
            busy = statistics.median(answer["processor_seconds"] for answer in own)
            difference = apart(own[0]["vectors"], answers[OURS][0]["vectors"])
            if difference > 1e-4 and not system.endswith("8 bits"):
                raise SystemExit(f"{system}: vectors differ from Sidenote's by {difference}")
            rows.append({
                "system": system,
                "texts": name,
                "batch": lines[system].split()[-1] if system not in (OURS, OURS_8) else "no padding",
                "texts_per_second": round(numbers[name] / median, 1),
                "tokens_per_second": round(tokens[name] / median, 1),
                "tokens_per_processor_second": round(tokens[name] / busy, 1),
                "fastest": round(numbers[name] / min(answer["seconds"] for answer in own), 1),
                "slowest": round(numbers[name] / max(answer["seconds"] for answer in own), 1),
                "gflops": round(tokens[name] * OPERATIONS / median / 1e9, 1),
                "peak_bytes": own[-1]["peak_bytes"],
                "difference": difference,
                "cosine": min(sum(x * y for x, y in zip(a, b)) for a, b in zip(own[0]["vectors"], answers[OURS][0]["vectors"])),
            })
    for worker in workers.values():
        worker.close()
    for row in rows:
        row["product_gflops"] = round(max(rates), 1)
    return rows


def table(result):
    rows = result["rows"]
    lines = ["# Sentence encoding, side by side", "", f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += [
        "| texts | system | batch | texts/s, median | slowest to fastest | tokens/s | tokens a second and busy core | of the product rate | peak MB |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {SETS[row['texts']]} | {row['system']} | {row['batch']} | {row['texts_per_second']:,.1f} | "
            f"{row['slowest']:,.1f} to {row['fastest']:,.1f} | {row['tokens_per_second']:,.0f} | "
            f"{row['tokens_per_processor_second']:,.0f} | {row['gflops'] / row['product_gflops']:.0%} of "
            f"{row['product_gflops']:.0f} GFLOP/s | {row['peak_bytes'] / 1e6:,.0f} |"
        )
    lines += ["", "| texts | speed to the better onnxruntime (aim 1.5) | to sentence-transformers | 8 bits to the better onnxruntime in 8 | "
        "to sentence-transformers |", "|---|--:|--:|--:|--:|"]  # fmt: skip
    for name, what in SETS.items():
        own = {row["system"]: row["texts_per_second"] for row in rows if row["texts"] == name}
        best = lambda begin, bits: max(own[s] for s in own if s.startswith(begin) and s.endswith("8 bits") == bits)
        times = [own[ours] / best(begin, bits and begin == "onnx") for ours, bits in ((OURS, False), (OURS_8, True)) for begin in ("onnx", "sentence")]
        lines.append(f"| {what} | " + " | ".join(f"{x:.2f}" for x in times) + " |")
    exact = max(row["difference"] for row in rows if not row["system"].endswith("8 bits"))
    ours, theirs = (min(row["cosine"] for row in rows if row["system"].endswith("8 bits") and row["system"].startswith(begin)) for begin in ("sidenote", "onnx"))
    lines += [
        "",
        "all-MiniLM-L6-v2, in f32 where nothing else is said; tokenising and pooling are in the time. Every peer's batches are sorted by length and of "
        "the size that was fastest for it. The product rate is that of 2048 x 2048 matrices in f32 through Sidenote's own kernels, "
        "the best between the turns; the part of it counts multiplications with weights alone. Vectors in f32 differ from "
        f"Sidenote's by {exact:.0e} at most; the least cosine with them is {ours:.4f} in Sidenote's 8 bits, {theirs:.4f} in onnxruntime's.",
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["sidenote", "program", "model", "articles", "work"]:
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=160, help="in each set")
    parser.add_argument("--results", default=os.path.join(HERE, "..", "results"))
    parser.add_argument("--note", default="", help="about the machine, such as: others at work")
    options = parser.parse_args()
    sets, tokens = pieces(options.model, options.articles, options.texts)
    place = lambda name: os.path.join(options.work, name)
    texts, onnx, onnx_8, model_8 = place("texts.json"), place("minilm.onnx"), place("minilm-8-bits.onnx"), place("minilm-8-bits")
    with open(texts, "w", encoding="utf-8") as out:
        json.dump(sets, out)
    if not os.path.exists(onnx):
        export(options.model, onnx)
    if not os.path.exists(onnx_8):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(onnx, onnx_8, weight_type=QuantType.QInt8, per_channel=True)
    if not os.path.exists(model_8):
        subprocess.run([options.sidenote, "encoder", "quantise", options.model, "--out", model_8, "--quiet"], check=True)
    numbers = {name: len(own) for name, own in sets.items()}
    result = {
        "machine": processor() + (f" ({options.note})" if options.note else ""),
        "date": datetime.date.today().isoformat(),
        "command": f"benches/peers/encode.sh WORK TEXT.jsonl --threads {options.threads} --rounds {options.rounds}",
        "rows": measure(options, (options.model, model_8, texts, onnx, onnx_8, tokens, numbers)),
    }
    with open(os.path.join(options.results, "encode.json"), "w", encoding="ascii") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
    with open(os.path.join(options.results, "encode.md"), "w", encoding="ascii") as out:
        out.write(table(result))


if __name__ == "__main__":
    main()
