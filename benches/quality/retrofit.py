"""What RETRO's layers should start as, on a frozen decoder and from scratch: a study, cell by cell.

    python retrofit.py WORK SIMPLEWIKI --sidenote PROGRAM [--smollm2 FILE.gguf] [--cells PATTERN]

SIMPLEWIKI is a folder with train-*.jsonl and valid.jsonl ({"id", "title", "text"} a line). For each base (`small`, a
decoder of 128 numbers and 4 layers that is trained here first, and `smollm2`), each kind of text (`ordinary`: random articles;
`templated`: articles that share at least a fifth of their 8-grams of words with another one) and each start of the new
layers (`random`, `gate`: at random behind a gate that is shut at first, `copy`; `-last`: one layer of one wide head
after the last attention, instead of the paper's every third; `-10`: reading ten neighbours a chunk instead of two, `-words` and
`-hybrid`: found by words or by both instead of by vectors), RETRO's layers are trained on the frozen base (`kind = "retrofit"`) for the
same number of steps, and the perplexity of held-out articles of the same kind is measured with retrieval on, off, and
shuffled. With the base `scratch` decoder and layers are trained together, from nothing, for as many steps as `small` was trained
alone (`kind = "retro"`), which it is compared with; layers that copy learn at a tenth of the rate there, which is named in brackets. Held-out templated articles share a fifth of their 8-grams with articles that are in the index, by construction.

Needs numpy. A cell is one run. Its result is a line of retrofit.jsonl beside this file, appended as soon as it is there; what is
there is not run again, so a run that was stopped goes on, and cells can be run one by one. At the end retrofit.md is
written from all lines. The machine may be busy: only seconds suffer.
"""

import argparse
import glob
import json
import os
import random
import sys
import time
from functools import partial

from cells import HERE, arguments, run_cells, sidenote

sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts"))
import text_overlap  # noqa: E402

STARTS = ["random", "gate", "copy", "random-last", "copy-last", "copy-last-10", "copy-last-10-words", "copy-last-10-hybrid"]
CHUNK = 32
NEIGHBOURS, MANY = 2, 10
SMALL = dict(articles=4000, held=80, base_steps=900, steps=150, batch=2048, width=128, blocks=4)
SIZES = {  # articles to train on, held out; steps of the base and of RETRO's layers, tokens a batch
    "small": SMALL,
    "scratch": {**SMALL, "steps": SMALL["base_steps"]},
    "smollm2": dict(articles=1500, held=24, base_steps=0, steps=40, batch=1024, width=576, blocks=30, precision="bf16"),
}


def decoder(size):
    """The section of a decoder that is trained here."""
    return f"[model]\nhidden_size = {size['width']}\nlayers = {size['blocks']}\nheads = 4\n"


def articles(simplewiki, kind, count, held):
    """Articles of a kind to train on, and held-out ones; the same for the same arguments."""
    paths = sorted(glob.glob(os.path.join(simplewiki, "train-*.jsonl")))
    everything = [json.loads(line) for path in paths for line in open(path, encoding="utf-8")]
    random.Random(0).shuffle(everything)
    if kind == "templated":
        shares = text_overlap.share_elsewhere(text_overlap.grams(a["text"] for a in everything))
        everything = [a for a, share in zip(everything, shares) if share >= 0.2]
    return everything[held : held + count], everything[:held]


def write_articles(path, some):
    with open(path, "w", encoding="utf-8") as out:
        for article in some:
            record = {"id": article["id"], "title": article["title"], "text": article["text"]}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def prepare(args, base, text):
    """Index, neighbours and base model of a pair; gives the folder and the base."""
    base = "small" if base == "scratch" else base
    size, folder = SIZES[base], os.path.join(args.work, f"{base}-{text}")
    model = args.smollm2 if base == "smollm2" else os.path.join(folder, "base", "model")
    if os.path.exists(os.path.join(folder, "ready")):
        return folder, model
    os.makedirs(folder, exist_ok=True)
    known, held = articles(args.simplewiki, text, size["articles"], size["held"])
    write_articles(os.path.join(folder, "corpus.jsonl"), known)
    write_articles(os.path.join(folder, "held.jsonl"), held)
    tokenizer = args.smollm2 if base == "smollm2" else os.path.join(folder, "tokenizer.json")
    if base == "small" and not os.path.exists(tokenizer):
        sidenote(args, "tokenizer", "train", f"{folder}/corpus.jsonl", "--vocab-size", 4096, "--out", tokenizer)
    sidenote(args, "index", "build", f"{folder}/corpus.jsonl", "--encoder", args.encoder, "--tokenizer", tokenizer,
        "--chunk-tokens", CHUNK, "--out", f"{folder}/index", "--force")  # fmt: skip
    sidenote(args, "neighbours", f"{folder}/index", "-k", NEIGHBOURS, "--out", f"{folder}/neighbours", "--force")
    if base == "small":
        with open(os.path.join(folder, "base.toml"), "w") as out:
            out.write(
                f'kind = "lm"\nout = "{folder}/base"\nindex = "{folder}/index"\n'
                f"{decoder(size)}[training]\nsteps = {size['base_steps']}\nbatch_tokens = {size['batch']}\nchunks = 8\n"
                f"learning_rate = 3e-3\nwarmup_steps = 50\ndecay_steps = {size['base_steps'] // 3}\n"
            )
        sidenote(args, "train", f"{folder}/base.toml", "--resume")
    open(os.path.join(folder, "ready"), "w").close()
    return folder, model


def cell(args, base, text, start):
    size = SIZES[base]
    folder, model = prepare(args, base, text)
    name = start
    start, *found = name.split("-10")
    neighbours = os.path.join(folder, "neighbours")
    count = MANY if found else NEIGHBOURS
    if found:
        ranking = found[0].removeprefix("-") or "vectors"
        neighbours += f"-{count}-{ranking}"
        if not os.path.exists(os.path.join(neighbours, "manifest.json")):
            sidenote(args, "neighbours", f"{folder}/index", "-k", count, "--ranking", ranking, "--out", neighbours)
    scratch = base == "scratch"
    out = os.path.join(folder, f"scratch-{name}" if scratch else name)
    kind, beginning = ("retro", decoder(size)) if scratch else ("retrofit", f'base = "{model}"\n')
    rate, warmup = ("3e-3", 50) if scratch else ("1e-3", 10)
    if base == "smollm2" and start.startswith("copy"):
        rate = "1e-4"  # at 1e-3 it is unlearnt
    with open(f"{out}.toml", "w") as file:
        file.write(
            f'kind = "{kind}"\nout = "{out}"\nindex = "{folder}/index"\nneighbours = "{neighbours}"\n'
            f"{beginning}[retro]\nneighbours = {count}\n"
            f"[training]\nsteps = {size['steps']}\nbatch_tokens = {size['batch']}\nchunks = 8\n"
            f"precision = \"{size.get('precision', 'f32')}\"\n"
            f"learning_rate = {rate}\nwarmup_steps = {warmup}\ndecay_steps = {size['steps'] // 3}\n"
        )
    settings = {"retro.encoder_layers": 1, "retro.initialisation": "random"}
    if start == "gate":
        settings["retro.gate"] = "true"
    if start.endswith("-last"):
        settings |= {"retro.layers": [size["blocks"]], "retro.heads": 1, "retro.head_dim": size["width"]}
    if start.startswith("copy"):
        # Wide enough for a token beside the tokens before it.
        settings |= {"retro.initialisation": "copy", "retro.encoder_hidden_size": 2 * size["width"],
                     "retro.encoder_heads": 2 * size["width"] // 32}  # fmt: skip
    began = time.time()
    trained = {}
    if not os.path.exists(os.path.join(out, "model")):
        overrides = [f"--set={key}={value}" for key, value in settings.items()]
        trained = sidenote(args, "train", f"{out}.toml", *overrides, "--resume")
    measured = {}
    for retrieval in ("on", "off", "shuffled"):
        report = sidenote(args, "eval", "perplexity", f"{out}/model", "--corpus", f"{folder}/held.jsonl", "--index",
                     f"{folder}/index", "--retrieval", retrieval)  # fmt: skip
        measured[retrieval] = {key: report[key] for key in ("perplexity", "bits_per_byte", "tokens", "bytes")}
        if retrieval == "on":
            chunks = {point["alpha"]: point["chunks"] for point in report["filtered"]}
            measured["chunks_sharing_at_most_an_eighth"] = chunks[0.125] / max(1, chunks[1.0])
    if scratch:
        report = sidenote(args, "eval", "perplexity", model, "--corpus", f"{folder}/held.jsonl")
        measured["plain"] = {key: report[key] for key in ("perplexity", "bits_per_byte", "tokens", "bytes")}
    return {
        **{f"settings.{key}": value for key, value in {**size, **settings}.items()},
        "seed": 0,
        "rate": f"{rate} (3e-4)" if scratch and start.startswith("copy") else rate,
        "trained_parameters": trained.get("trained_parameters"),
        "train_seconds": trained.get("seconds"),
        "seconds": round(time.time() - began, 1),
        **measured,
    }


def table(lines):
    rows = [
        "# What RETRO's layers should start as\n",
        "Made by `benches/quality/retrofit.py` (see there); one seed a cell. Perplexity a token of held-out articles with\n"
        "retrieval on, off and shuffled (each chunk reads some other chunk's neighbours). Plain is the decoder that was trained alone:\n"
        "the frozen base, which it is with retrieval off, and for `scratch` one trained for as many steps.\n",
        "| base | text | start | rate | trained parameters | plain | off | on | shuffled | on / plain | on / shuffled |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for line in sorted(lines, key=lambda line: (line["base"], line["text"], STARTS.index(line["start"]))):
        on, off, shuffled = (line[name]["perplexity"] for name in ("on", "off", "shuffled"))
        plain = line["plain"]["perplexity"] if "plain" in line else off
        rows.append(
            f"| {line['base']} | {line['text']} | {line['start']} | {line['rate']} | {line['trained_parameters'] or '-'} "
            f"| {plain:.2f} | {off:.2f} | {on:.2f} | {shuffled:.2f} | {on / plain:.3f} | {on / shuffled:.3f} |"
        )
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("simplewiki")
    parser.add_argument("--encoder", default="default", help="what neighbours are found by")
    parser.add_argument("--smollm2", help="SmolLM2-135M-Instruct.Q4_1.gguf; without it these cells are left out")
    args = arguments(parser, "work", "simplewiki", "smollm2")
    bases = ["small", "scratch"] + (["smollm2"] if args.smollm2 else [])
    each = ((base, text, start) for base in bases for text in ("ordinary", "templated") for start in STARTS)
    cells = (("-".join(values), values, partial(cell, args, *values)) for values in each)
    run_cells("retrofit", args.cells, cells, ("base", "text", "start"), table)


if __name__ == "__main__":
    main()
