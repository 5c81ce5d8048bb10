"""Open questions over Simple English Wikipedia: what can be found in it, and what a reader makes of it, cell by cell.

    python qa.py WORK SIMPLEWIKI QUESTIONS --sidenote PROGRAM [--reader MODEL] [--encoder FOLDER] [--seeds 1] [--cells PATTERN]

SIMPLEWIKI is a folder with train-*.jsonl, valid.jsonl and test.jsonl ({"id", "title", "text"} a line), of which all is
indexed in passages of about 100 words. QUESTIONS has the folders oqa_nq_open, oqa_webquestions, oqa_squad_open and
oqa_curatedtrec; of each test set SAMPLE questions are drawn with a fixed seed, and of these readers get the first READ
(qa_data.py). MODEL is a reader (such as SmolLM2-135M-Instruct.Q4_1.gguf), FOLDER an encoder (such as all-MiniLM-L6-v2)
beside the one in the program; cells that need one which is not given are left out.

    ceiling                  in how many questions any article of the corpus holds an answer
    retrieve-R               whether one of the first 1, 5, 20, 100 passages does
    quoting-R                the default reader, which quotes a sentence, over the first 5 passages
    closed-book              MODEL without passages; closed-book-tuned: after all its weights were trained on the examples without any
    untrained-R              MODEL as it is, over the first 3 passages
    reader-R                 MODEL after all its weights were trained on SHOTS examples with the first 3 passages; R stays
    reader-16-R, joint-pdist-16-R   the same steps on FEW of the examples, four times each
    joint-LOSS-R             the same while R learns from it by pdist, emdr2, adist or loop; the index is then encoded again
    joint-pdist-fast-R       the same by pdist, with R at the reader's rate in place of a tenth of it
    query-side-R             the same by pdist, while only the queries' encoder learns

R is bm25, static (the encoder in the program), hybrid (both, by reciprocal rank), minilm (FOLDER with weights of 8 bits, as
`encoder quantise` writes it), minilm-hybrid; or one of these over the pool (pool-bm25, ...; FOLDER as it is): the passages
that bm25 and static find first for the questions that readers get and for the examples, POOL each. An index that is encoded
again for every cell has to be small here. What is trained is trained on
all four sets at once, for each of SEEDS seeds, and asked each set's questions.

CuratedTREC's answers are regular expressions, and looked for as such; the others' are compared as SQuAD's script does it.
A cell is one of these on one set of questions, with one seed where something is trained. Its result is a line of qa.jsonl
beside this file, appended as soon as it is there; what is there is not run again. At the end qa.md is written from all lines
(qa_table.py). Needs Python only.
"""

import argparse
import glob
import json
import os
import time
from functools import partial

from cells import arguments, once, run_cells, sidenote
from qa_data import READ, SAMPLE, SETS, SHOTS, lessons, normalise, questions, write
from qa_table import AT, table

PASSAGE_TOKENS = 160
# Passages that a model reads, most tokens that it writes, and passages of each ranking that go into the pool for a question.
PASSAGES, ANSWER_TOKENS, POOL = 3, 16, 10
# Where it looks, with which encoder's vectors, and what ranks.
RETRIEVERS = {
    "bm25": ("wiki", "default", "words"),
    "static": ("wiki", "default", "vectors"),
    "hybrid": ("wiki", "default", "hybrid"),
    "minilm": ("wiki", "rounded", "vectors"),
    "minilm-hybrid": ("wiki", "rounded", "hybrid"),
    "pool-bm25": ("pool", "encoder", "words"),
    "pool-minilm": ("pool", "encoder", "vectors"),
    "pool-minilm-hybrid": ("pool", "encoder", "hybrid"),
}
# Examples of the stages that have fewer than SHOTS.
FEW = {"reader-16": 16, "joint-pdist-16": 16}
LEARNING = [*(f"joint-{loss}" for loss in ("pdist-fast", "pdist", "emdr2", "adist", "loop")), "query-side"]
CELLS = [
    "ceiling",
    *(f"retrieve-{name}" for name in RETRIEVERS),
    *(f"quoting-{name}" for name in RETRIEVERS if not name.startswith("pool")),
    "closed-book",
    "closed-book-tuned",
    *(f"untrained-{name}" for name in RETRIEVERS),
    *(f"reader-{name}" for name in RETRIEVERS),
    "reader-16-pool-bm25",
    "reader-16-pool-minilm",
    "joint-pdist-16-pool-minilm",
    *(f"{stage}-pool-minilm" for stage in LEARNING),
]
TRAINED = ("closed-book-tuned", "reader-", "joint-", "query-side-")
# 64 examples once: steps of 4 questions, multiplied in bf16.
TRAINING = """
kind = "atlas"
out = {out}
base = {base}
{index}
examples = {examples}
[atlas]
passages = {passages}
batch = 4
target_tokens = {tokens}
{retriever}
[atlas.templates]
answer_tokens = {tokens}
[training]
steps = 16
precision = "bf16"
learning_rate = 1e-4
warmup_steps = 2
schedule = "linear"
evaluate_every = 1000
checkpoint_every = 1000
seed = {seed}
"""


def articles(args):
    for path in sorted(glob.glob(os.path.join(args.simplewiki, "*.jsonl"))):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def ceiling(args, name):
    answers = questions(args, name)[1]
    missing = dict(enumerate(answers))
    first = {}
    for number, wanted in missing.items():
        for words in wanted.words:
            first.setdefault(words[0], []).append((number, words))
    for article in articles(args):
        text = article["title"] + "\n" + article["text"]
        if name == "trec":
            for number in [n for n, wanted in missing.items() if wanted.held(text)]:
                del missing[number]
            continue
        words = normalise(text)
        for i, word in enumerate(words):
            for number, wanted in first.get(word, ()):
                if number in missing and words[i : i + len(wanted)] == wanted:
                    del missing[number]
    return {"questions": len(answers), "answerable": 1 - len(missing) / len(answers)}


def index(args, corpus, encoder):
    """The index of a corpus by an encoder, made when it is first asked for."""
    folder = os.path.join(args.work, f"index-{encoder}" if corpus == "wiki" else f"index-{corpus}-{encoder}")
    if not os.path.exists(os.path.join(folder, "manifest.json")):
        named = {"default": lambda: "default", "encoder": lambda: args.encoder, "rounded": lambda: rounded(args)}[encoder]()
        files = [pool(args)] if corpus == "pool" else sorted(glob.glob(f"{args.simplewiki}/*.jsonl"))
        # A passage of the pool ends with its sentence, which may be behind the end of its chunk.
        tokens = 2 * PASSAGE_TOKENS if corpus == "pool" else PASSAGE_TOKENS
        sidenote(args, "index", "build", *files, "--chunk-tokens", tokens, "--out", folder, "--resume", "--encoder", named)
    return folder


def rounded(args):
    """The encoder with weights of 8 bits."""
    folder = os.path.join(args.work, "encoder-8-bits")
    once(f"{folder}.json", lambda: sidenote(args, "encoder", "quantise", args.encoder, "--out", folder))
    return folder


def ask(args, path, answers, *options):
    """What `eval qa` says of the questions in `path`, each with its answers, and the summary."""
    # Of this process alone: another may be asking in the same folder.
    out = os.path.join(args.work, f"answers-{os.getpid()}.jsonl")
    summary = sidenote(args, "eval", "qa", *options, "--data", path, "--limit", len(answers), "--out", out)
    with open(out, encoding="utf-8") as lines:
        said = list(zip(map(json.loads, lines), answers))
    os.remove(out)
    return said, summary


def pool(args):
    """The passages that either ranking finds first for what readers are asked and learn from, as documents."""
    path = os.path.join(args.work, "pool.jsonl")
    if os.path.exists(path):
        return path
    found = {}
    files = [(questions(args, name)[0], READ) for name in SETS] + [(lessons(args), 10**6)]
    for file, most in files:
        with open(file, encoding="utf-8") as lines:
            count = min(most, sum(1 for _ in lines))
        for retriever in ("bm25", "static"):
            corpus, encoder, ranking = RETRIEVERS[retriever]
            said, _ = ask(args, file, [None] * count, "default", "--index", index(args, corpus, encoder),
                "--ranking", ranking, "--mode", "retrieve-only", "-k", POOL)  # fmt: skip
            for passage in (p for line, _ in said for p in line["passages"]):
                found[passage["id"], passage["text"]] = passage["title"]
    records = [{"id": f"{id}#{i}", "title": title, "text": text} for i, ((id, text), title) in enumerate(sorted(found.items()))]
    return write(path, records)


def recalls(said):
    held = [[wanted.held(p["title"] + "\n" + p["text"]) for p in line["passages"]] for line, wanted in said]
    most = max(map(len, held))
    return {f"recall_at_{n}": sum(any(row[:n]) for row in held) / len(held) for n in AT if n <= most}


def retrieve(args, name, retriever):
    corpus, encoder, ranking = RETRIEVERS[retriever]
    path, answers = questions(args, name)
    # The pool is of the questions that readers get.
    answers = answers[: READ if corpus == "pool" else SAMPLE]
    said, _ = ask(args, path, answers, "default", "--index", index(args, corpus, encoder), "--ranking", ranking, "--mode",
        "retrieve-only", "-k", max(AT))  # fmt: skip
    return {"questions": len(said), **recalls(said)}


def read(args, name, model, *options):
    """What `model` answers; with what was found for it, where something was."""
    path, answers = questions(args, name)
    answers = answers[: SAMPLE if model == "default" else READ]
    said, summary = ask(args, path, answers, model, "--max-tokens", ANSWER_TOKENS, *options)
    exact = [int(wanted.exact(line["generation"])) for line, wanted in said]
    return {
        "questions": len(exact),
        "exact_match": sum(exact) / len(exact),
        "f1": None if name == "trec" else summary["f1"],
        "holds_answer": sum(wanted.held(line["generation"]) for line, wanted in said) / len(exact),
        "read_holds_answer": sum(any(wanted.held(p["title"] + "\n" + p["text"]) for p in line["passages"]) for line, wanted in said) / len(exact),
        "questions_per_second": round(summary["questions_per_second"], 3),
        "exact": exact,
        "f1s": None if name == "trec" else [round(line["scores"]["f1"], 3) for line, _ in said],
    }  # fmt: skip


def retrieving(args, retriever, passages, folder=None):
    corpus, encoder, ranking = RETRIEVERS[retriever]
    return ["--index", folder or index(args, corpus, encoder), "--ranking", ranking, "-k", passages]


def train(args, stage, retriever, seed):
    """A run of `stage`, once for all sets: its folder, and what it reported."""
    run = os.path.join(args.work, "runs", f"{stage}-{retriever}-{seed}")
    shots, stage = FEW.get(stage, SHOTS), stage.removesuffix("-16")
    learns = {
        "closed-book-tuned": 'mode = "closed-book"',
        "reader": f'ranking = "{RETRIEVERS[retriever][2]}"' if retriever else "",
        "query-side": 'loss = "pdist"\nquery_side = true',
        "joint-pdist-fast": f'loss = "pdist"\nrerank = {3 * PASSAGES}\nretriever_rate = 1.0',
    }.get(stage, f'loss = "{stage.removeprefix("joint-")}"\nrerank = {3 * PASSAGES}')

    def through():
        os.makedirs(os.path.dirname(run), exist_ok=True)
        quoted = {"out": run, "base": args.reader, "examples": lessons(args, shots)}
        where = f"index = {json.dumps(index(args, *RETRIEVERS[retriever][:2]))}" if retriever else ""
        with open(f"{run}.toml", "w", encoding="utf-8") as out:
            out.write(TRAINING.format(**{key: json.dumps(value) for key, value in quoted.items()}, index=where, passages=PASSAGES,
                tokens=ANSWER_TOKENS, retriever=learns, seed=seed))  # fmt: skip
        return sidenote(args, "train", f"{run}.toml", "--resume")

    return run, once(f"{run}.json", through)


def trained(args, name, stage, retriever, seed):
    run, report = train(args, stage, retriever, seed)
    corpus, encoder, _ = RETRIEVERS[retriever]
    folder = index(args, corpus, encoder)
    if stage.startswith("joint-"):
        given, folder = folder, f"{run}-index"
        encode = lambda: sidenote(args, "index", "encode", given, "--encoder", f"{run}/model/retriever", "--out", folder)
        once(f"{run}-index.json", encode)
    model = f"{run}/model"
    result = read(args, name, model, *retrieving(args, retriever, PASSAGES, folder))
    if not stage.startswith("reader"):
        path, answers = questions(args, name)
        found, _ = ask(args, path, answers[:READ], model, "--mode", "retrieve-only", *retrieving(args, retriever, 20, folder))
        result.update(recalls(found))
    return {**result, "train_seconds": round(report["seconds"], 1), "train_loss": report["loss"]}


def measure(args, cell, name, seed):
    if cell == "ceiling":
        return ceiling(args, name)
    if cell == "closed-book":
        return read(args, name, args.reader, "--mode", "closed-book")
    if cell == "closed-book-tuned":
        run, report = train(args, cell, None, seed)
        said = read(args, name, f"{run}/model", "--mode", "closed-book")
        return {**said, "train_seconds": round(report["seconds"], 1), "train_loss": report["loss"]}
    stage = next((stage for stage in [*FEW, *LEARNING] if cell.startswith(f"{stage}-")), cell.partition("-")[0])
    retriever = cell.removeprefix(f"{stage}-")
    if stage == "retrieve":
        return retrieve(args, name, retriever)
    if stage == "quoting":
        return read(args, name, "default", *retrieving(args, retriever, 5))
    if stage == "untrained":
        return read(args, name, args.reader, *retrieving(args, retriever, PASSAGES))
    return trained(args, name, stage, retriever, seed)


def timed(*call):
    clock = time.monotonic()
    result = measure(*call)
    return {**result, "seconds": round(time.monotonic() - clock, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("simplewiki")
    parser.add_argument("questions")
    parser.add_argument("--reader", help="a model that reads")
    parser.add_argument("--encoder", help="an encoder beside the program's own")
    parser.add_argument("--seeds", type=int, default=1, help="of what is trained")
    args = arguments(parser, "work", "simplewiki", "questions", "reader", "encoder")
    needs = lambda cell: ("reader" if cell.startswith(("closed", "untrained", *TRAINED)) else None,
        "encoder" if "minilm" in cell or "pool" in cell else None)  # fmt: skip
    possible = [cell for cell in CELLS if all(need is None or getattr(args, need) for need in needs(cell))]
    cells = []
    for cell in possible:
        for seed in range(args.seeds) if cell.startswith(TRAINED) else [None]:
            shown = "" if seed is None else f"-{seed}"
            cells += [(f"{cell}-{name}{shown}", (cell, name, seed), partial(timed, args, cell, name, seed)) for name in SETS]
    run_cells("qa", args.cells, cells, ["cell", "set", "seed"], lambda lines: table(lines, CELLS))


if __name__ == "__main__":
    main()
