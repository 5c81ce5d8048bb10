"""What retrieval is worth: one small decoder, plain and with every way of looking things up, cell by cell.

    python memory.py WORK WIKITEXT2 SIMPLEWIKI --sidenote PROGRAM [--steps N] [--seeds 0,1,2] [--cells PATTERN]

WIKITEXT2 is a folder with train.txt, valid.txt and test.txt (words, <unk>), SIMPLEWIKI one with train-*.jsonl, valid.jsonl
and test.jsonl. For each corpus a tokenizer of 4,096 tokens is trained that all its systems share, and for each seed, in bf16 (asked in f32):

    plain           a decoder of 128 numbers and 4 layers, N steps of 2,048 tokens
    plain-longer    the same, going on for as many steps again
    cache           plain with a continuous cache
    knn-lm          plain with a datastore of the training text (tuned on held-out text)
    trime-local     trained with the memory of its own sequence, N steps, and asked with it
    trime-long      trained with consecutive sequences as memories, and asked with 1,024 contexts of the document
    trime-external  trained on batches of sequences alike, and asked with its own sequence and a datastore of the training
                    text (tuned on held-out text)
    retro           plain with RETRO's layers fitted (RETRO-fit, 256 steps), reading two neighbours a chunk
    retro-shuffled  the same model, reading some other chunk's neighbours
    retro+knn       the same model, with a datastore of the training text as well, made while it reads
    longer-...      cache, knn-lm, retro, retro-shuffled, retro+knn over plain-longer's model in place of plain's, which is
                    what they add to as much training; retro-10, which reads ten neighbours a chunk, and retro-unseen, the same with its
                    layers fitted to the validation text, which the decoder has not learnt; and trime-external,
                    whose second N steps are TRIME's over plain's, so that it is trained as long as well

A cell is one system on one corpus with one seed. Its result is a line of memory.jsonl beside this file, appended as soon
as it is there; what is there is not run again, so a run that was stopped goes on; other --steps are other cells. At the end
memory.md is written from all lines: perplexity a token and (WikiText-2) an original word, the end of a line counted as one;
bits a byte of UTF-8; and ratios to plain-longer of the same seed. The first token of a document is predicted by no system.
What reads an index is timed with finding ten neighbours a chunk, for bpb(alpha). Needs Python only.
"""

import argparse
import glob
import json
import math
import os
import random
import re
import statistics
import time
from functools import partial

from cells import arguments, once, run_cells, sidenote

OVER_A_MODEL = ["cache", "knn-lm", "retro", "retro-shuffled", "retro+knn"]
SYSTEMS = [
    "plain", "plain-longer", *OVER_A_MODEL[:2], "trime-local", "trime-long", "trime-external", *OVER_A_MODEL[2:],
    *(f"longer-{system}" for system in (*OVER_A_MODEL[:2], "trime-external", *OVER_A_MODEL[2:], "retro-10", "retro-unseen")),
]  # fmt: skip
CHUNK, CHUNKS, BATCH = 32, 8, 2048
FIT_STEPS = 256
# Neighbours that are found for a chunk; RETRO reads the first two where its name says no other number.
MOST = 10
TARGETS = {"longer-knn-lm": 0.85, "longer-trime-external": 0.80, "longer-retro": 0.90}
WHY = """Why some are missed: the longer a decoder learns one text, the less the same text is worth to it as a datastore (compare the parts by
steps), and RETRO's layers, fitted to a text that their decoder has learnt, find nothing there that it does not know. What a chunk's
neighbours have in common with it is little (the shares above); where articles are alike, RETRO's layers are worth more than a quarter of a small
decoder's perplexity (retrofit.md). A decoder of this size and budget has not ended to learn: with other seeds it may find out how to
repeat what stands in its context within the first or the second half of its steps, which moves all ratios of that seed.
"""
# Shares of a chunk at which `eval perplexity` reports what is left.
ALPHAS = [eighth / 8 for eighth in range(1, 9)]


def wikitext(path):
    """Articles of a file of WikiText, with how many words they have, ends of lines counted."""
    articles, heading = [], re.compile(r"^ = [^=].*[^=] = $")
    for line in open(path, encoding="utf-8"):
        if heading.match(line.rstrip("\n")) or not articles:
            articles.append([])
        articles[-1].append(line)
    for number, lines in enumerate(articles):
        text = "".join(lines)
        if text.strip():
            yield {"id": f"{os.path.basename(path)}-{number}", "text": text, "words": sum(len(line.split()) + 1 for line in lines)}


def wiki(paths, count):
    everything = [json.loads(line) for path in sorted(paths) for line in open(path, encoding="utf-8")]
    random.Random(0).shuffle(everything)
    for article in everything[:count]:
        yield {"id": article["id"], "title": article["title"], "text": article["text"]}


def texts(args, corpus):
    """Articles of the three parts."""
    if corpus == "wikitext2":
        return {part: list(wikitext(os.path.join(args.wikitext2, f"{part}.txt"))) for part in ("train", "valid", "test")}
    part = lambda pattern, count: list(wiki(glob.glob(os.path.join(args.simplewiki, pattern)), count))
    return {"train": part("train-*.jsonl", 5000), "valid": part("valid.jsonl", 120), "test": part("test.jsonl", 120)}


def prepare(args, corpus):
    """Texts, tokenizer, index and neighbours; gives their folder and the words of the test text."""
    folder = os.path.join(args.work, corpus)
    os.makedirs(folder, exist_ok=True)
    return folder, once(os.path.join(folder, "ready.json"), partial(write_corpus, args, corpus, folder))


def write_corpus(args, corpus, folder):
    words = None
    for part, articles in texts(args, corpus).items():
        with open(os.path.join(folder, f"{part}.jsonl"), "w", encoding="utf-8") as out:
            for article in articles:
                out.write(json.dumps({k: v for k, v in article.items() if k != "words"}, ensure_ascii=False) + "\n")
        if part == "test" and all("words" in article for article in articles):
            words = sum(article["words"] for article in articles)
    sidenote(args, "tokenizer", "train", f"{folder}/train.jsonl", "--vocab-size", 4096, "--out", f"{folder}/tokenizer.json")
    sidenote(args, "index", "build", f"{folder}/train.jsonl", "--tokenizer", f"{folder}/tokenizer.json", "--chunk-tokens", CHUNK,
        "--out", f"{folder}/index", "--force")  # fmt: skip
    sidenote(args, "neighbours", f"{folder}/index", "-k", MOST, "--out", f"{folder}/neighbours", "--force")
    sidenote(args, "neighbours", f"{folder}/index", "--queries", f"{folder}/valid.jsonl", "-k", MOST,
        "--out", f"{folder}/held-out", "--force")  # fmt: skip
    return {"words": words}


def train(args, folder, seed, name, sections, **overrides):
    """Trains (or finds) the run `name`; gives its folder and the seconds of its steps."""
    runs = os.path.join(folder, f"{args.steps}-steps-seed{seed}")
    out = os.path.join(runs, name)
    os.makedirs(out, exist_ok=True)
    steps = overrides.pop("steps", args.steps)
    decay = overrides.pop("decay", args.steps // 4)
    model = "" if "base" in sections or "continue_from" in sections else "[model]\nhidden_size = 128\nlayers = 4\nheads = 4\n"
    kind = "retrofit" if "base" in sections else "lm"
    path = os.path.join(runs, f"{name}.toml")
    with open(path, "w") as file:
        file.write(
            f'kind = "{kind}"\nout = "{out}"\nindex = "{folder}/index"\nheld_out = "{folder}/held-out"\n{sections}\n{model}'
            f"[training]\nsteps = {steps}\nchunks = {CHUNKS}\nbatch_tokens = {BATCH}\nseed = {seed}\n"
            f'precision = "bf16"\n'
            f"learning_rate = {overrides.pop('rate', 3e-3)}\nwarmup_steps = 50\ndecay_steps = {decay}\nevaluate_every = 1000\n"
        )
    return out, once(os.path.join(out, "report.json"), partial(sidenote, args, "train", path, "--resume"))


def size_of(folder):
    return sum(os.path.getsize(os.path.join(at, file)) for at, _, files in os.walk(folder) for file in files)


def datastore(args, folder, model, retro=False, trime=None):
    """A tuned datastore of the training text in the contexts of a model; a RETRO model reads its neighbours there too,
    one trained with memories has `trime` contexts in its softmax."""
    memory = os.path.join(os.path.dirname(model), "memory")
    if not os.path.exists(os.path.join(memory, "manifest.json")):
        reading = ["--neighbours", f"{folder}/neighbours"] if retro else []
        kind = ("--index", "IVF4096,RaBitQ")  # a graph over millions of contexts would take longer than training
        sidenote(args, "memory", "build", model, "--text-of", f"{folder}/index", "--out", memory, *kind, *reading)
    reading = (["--index", f"{folder}/index"] if retro else []) + (["--trime", trime] if trime else [])
    tune = ("memory", "tune", memory, model, "--corpus", f"{folder}/valid.jsonl", "--adaptive", "-k", 256, *reading)
    once(os.path.join(os.path.dirname(model), "tuned.json"), partial(sidenote, args, *tune))
    return memory


def cell(args, corpus, seed, system):
    folder, ready = prepare(args, corpus)
    options, memory = [], None
    added = system.removeprefix("longer-")
    longer = added != system or system == "plain-longer"
    trime = added.removeprefix("trime-") if added.startswith("trime-") else None
    learnt = f'[trime]\nmemory = "{trime}"' if trime else ""
    if trime and not longer:
        out, report = train(args, folder, seed, system, learnt)
    else:
        out, report = train(args, folder, seed, "plain", "")
        if longer:
            level = args.steps - args.steps // 4
            start = f'continue_from = "{out}/checkpoints/step-{level:07}"\n{learnt}'
            out, more = train(args, folder, seed, system if trime else "plain-longer", start, steps=2 * args.steps)
            report = {**more, "seconds": more["seconds"] + report["seconds"] * level / args.steps}
    if trime:
        options = ["--trime", {"local": CHUNK * CHUNKS, "long": 1024, "external": CHUNK * CHUNKS}[trime]]
        if trime == "external":
            memory = datastore(args, folder, f"{out}/model", trime=CHUNK * CHUNKS)
            options += ["--memory", memory]
    elif added == "cache":
        options = ["--cache", 500]
    elif added == "knn-lm":
        memory = datastore(args, folder, f"{out}/model")
        options = ["--memory", memory]
    elif added.startswith("retro"):
        k = 2 if added in OVER_A_MODEL else MOST
        chunks_of = "held-out" if added == "retro-unseen" else "neighbours"
        sections = (
            f'neighbours = "{folder}/{chunks_of}"\nbase = "{out}/model"\n[retro]\nneighbours = {k}\nlayers = [4]\nheads = 1\nhead_dim = 128\n'
            f"encoder_hidden_size = 256\nencoder_intermediate_size = 128\nencoder_heads = 8\nencoder_layers = 1\n"
            f'initialisation = "copy"'
        )
        fitted = dict(steps=FIT_STEPS, decay=FIT_STEPS // 4, rate=1e-3)
        run = "longer-retro" if longer else "retro"
        out, fit = train(args, folder, seed, run if k == 2 else system, sections, **fitted)
        report = {**fit, "seconds": fit["seconds"] + report["seconds"]}
        options = ["--index", f"{folder}/index"]
        if added == "retro-shuffled":
            options += ["--retrieval", "shuffled"]
        if added == "retro+knn":
            memory = datastore(args, folder, f"{out}/model", retro=True)
            options += ["--memory", memory]
    began = time.time()
    measured = sidenote(args, "eval", "perplexity", f"{out}/model", "--corpus", f"{folder}/test.jsonl", *options)
    seconds = time.time() - began
    nats = math.log(measured["perplexity"]) * measured["tokens"]
    return {
        "perplexity": measured["perplexity"],
        "word_perplexity": math.exp(nats / ready["words"]) if ready["words"] else None,
        "bits_per_byte": measured["bits_per_byte"],
        "tokens": measured["tokens"],
        "bytes": measured["bytes"],
        "train_seconds": round(report["seconds"], 1),
        "held_out_loss": report["held_out_loss"],
        "test_tokens_per_second": round(measured["tokens"] / seconds, 1),
        "memory_bytes": sum(map(size_of, ([memory] if memory else []) + ([f"{folder}/index"] if "--index" in options else []))),
        "filtered": measured["filtered"],
    }


def table(lines):
    rows = [
        "# What retrieval is worth\n",
        "Made by `benches/quality/memory.py` (see there). Means over seeds, and the lowest and highest ratio to plain-longer.\n"
        "Seconds and tokens a second are those of a machine that may have been busy.\n",
    ]
    for corpus, steps in dict.fromkeys((line["corpus"], line["steps"]) for line in lines):
        here = [line for line in lines if (line["corpus"], line["steps"]) == (corpus, steps)]
        longer = {line["seed"]: line for line in here if line["system"] == "plain-longer"}
        rows += [
            f"## {corpus}, {steps} steps\n",
            "| system | seeds | perplexity a token | a word | bits a byte | to plain-longer | lowest to highest | train s | test tokens/s | memory MB |",
            "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|",
        ]
        for system in SYSTEMS:
            mine = [line for line in here if line["system"] == system]
            if not mine:
                continue
            mean = lambda name: statistics.mean(line[name] for line in mine)
            ratios = [line["perplexity"] / longer[line["seed"]]["perplexity"] for line in mine if line["seed"] in longer]
            words = f"{mean('word_perplexity'):.1f}" if mine[0]["word_perplexity"] else "-"
            ratio = f"{statistics.mean(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f}" if ratios else "- | -"
            rows.append(
                f"| {system} | {len(mine)} | {mean('perplexity'):.2f} | {words} | {mean('bits_per_byte'):.4f} | {ratio} "
                f"| {mean('train_seconds'):.0f} | {mean('test_tokens_per_second'):.0f} | {mean('memory_bytes') / 1e6:.0f} |"
            )
        rows.append("")
        rows += wanted(here)
        rows += overlaps(here)
    rows.append(WHY)
    return "\n".join(rows)


def wanted(lines):
    """Which of the targets are reached, mean over the seeds that have both."""
    of = {(line["system"], line["seed"]): line["perplexity"] for line in lines}

    def ratio(system, other):
        both = [of[system, seed] / of[other, seed] for name, seed in of if name == system and (other, seed) in of]
        return statistics.mean(both) if both else None

    said = []
    for system, most in TARGETS.items():
        found = ratio(system, "plain-longer")
        if found:
            said.append(f"{system} at most {most:.2f}: {found:.3f}, {'reached' if found <= most else 'missed'}")
    for other in ("longer-knn-lm", "longer-retro"):
        found = ratio("longer-retro+knn", other)
        if found:
            said.append(f"longer-retro+knn below {other}: {found:.3f} of it, {'reached' if found < 1 else 'missed'}")
    return ["Wanted of plain-longer's perplexity:\n", *(f"- {one}" for one in said), ""] if said else []


def overlaps(lines):
    """What RETRO's own neighbours are better than another chunk's, by how much a chunk has in common with them (first seed)."""
    of = {line["system"]: line for line in reversed(lines)}
    pairs = [name for name in ("retro", "longer-retro") if name in of and f"{name}-shuffled" in of]
    if not pairs:
        return []
    shown = [ALPHAS.index(alpha) for alpha in (0.125, 0.25, 0.5, 1.0)]
    rows = [
        "Bits a byte that are saved by reading a chunk's own neighbours in place of another's, over the chunks whose longest run of tokens in\n"
        "common with them is at most so much of the chunk (share of all chunks):\n",
        "| system | " + " | ".join(f"{ALPHAS[at]:g}" for at in shown) + " |",
        "|---|" + "--:|" * len(shown),
    ]
    for name in pairs:
        own, other = of[name]["filtered"], of[f"{name}-shuffled"]["filtered"]
        saved = [f"{other[at]['bits_per_byte'] - own[at]['bits_per_byte']:.4f} ({own[at]['chunks'] / own[-1]['chunks']:.1%})" for at in shown]
        rows.append(f"| {name} | " + " | ".join(saved) + " |")
    return [*rows, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("wikitext2")
    parser.add_argument("simplewiki")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", default="0,1,2")
    args = arguments(parser, "work", "wikitext2", "simplewiki")
    each = (
        (corpus, seed, system, args.steps)
        for seed in map(int, args.seeds.split(","))
        for corpus in ("wikitext2", "simplewiki")
        for system in SYSTEMS
    )
    cells = ((f"{c}-{seed}-{system}", (c, seed, system, n), partial(cell, args, c, seed, system)) for c, seed, system, n in each)
    run_cells("memory", args.cells, cells, ("corpus", "seed", "system", "steps"), table)


if __name__ == "__main__":
    main()
