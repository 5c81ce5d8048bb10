"""Retrieval and reading, Sidenote beside sentence-transformers + faiss + transformers, in alternation.

    python ask.py SIDENOTE ASK_PEER ENCODE_PEER ENCODER READER.gguf SIMPLEWIKI QUESTIONS.jsonl WORK
        [--rows 1000000] [--real 170000] [--questions 100] [--refreshed 4000] [--embedded 640] [--rounds 3] [--threads 2]

SIDENOTE is the program, ASK_PEER and ENCODE_PEER are made from examples/ask_peer.rs and encode_peer.rs. SIMPLEWIKI's articles are cut
into passages of 100 words; the first REAL of them are encoded by ENCODER (all-MiniLM-L6-v2), and rows that are made up after
their likeness (synthetic.py) fill the index up to ROWS: SYNTHETIC vectors, with a text of a few words. QUESTIONS.jsonl is
NQ-open's. Both sides search the same rows by inverted lists: Sidenote by KIND, tuned by `index tune` with TUNED other
questions to a recall of RECALL, faiss by IVF (as many lists as the root of the rows, 64 of them looked at), and read the same
passages' text with the same weights: Sidenote as they are in the file, transformers in f32. Passages are also encoded in 8 bits
(`sidenote encoder quantise`). Answers are compared, and recall is that of the exact search.

    embedding   passages a second
    refresh     passages a second from a corpus to an index on disk, by a process that begins and ends
    asking      answers a second, and the time from a question to its answer: median and 95th of 100
    memory      the most that the process which asks has held, pages of mapped files included

Every turn each side does all three, in turn. Writes benches/results/ask.json and ask.md. What is in WORK is made once.
"""

import argparse
import datetime
import glob
import json
import os
import statistics
import subprocess
import sys

import numpy

from encode import Worker, processor
from synthetic import Generator

HERE = os.path.dirname(os.path.abspath(__file__))
OURS, OURS_8, THEIRS = "Sidenote", "Sidenote, encoder of 8 bits", "sentence-transformers + faiss + transformers"
WORDS, CHARACTERS, PASSAGES, TOKENS, WIDTH, BATCH = 100, 900, 5, 24, 384, 16
KIND, TUNED, RECALL = "IVF4096,RaBitQ4", 300, 0.95
BLOCK = 1 << 16
# Runs a command and says its seconds, and the most that it has held: a process counts what the one held that it was forked from,
# so that has to be a small one.
TIMED = """import json, resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": seconds, "peak_bytes": used.ru_maxrss * 1024}))
sys.exit(status)"""


def note(text):
    print(text, file=sys.stderr, flush=True)


def passages(folder):
    for path in sorted(glob.glob(os.path.join(folder, "*.jsonl"))):
        with open(path, encoding="utf-8") as lines:
            for article in map(json.loads, lines):
                words = article["text"].split()
                for first in range(0, len(words), WORDS):
                    # A number makes passages different that say the same.
                    name = f"{article['id']}-{first // WORDS}"
                    yield {"id": name, "title": article["title"], "text": " ".join(words[first : first + WORDS])[:CHARACTERS]}


def write(path, records):
    with open(path + ".part", "w", encoding="utf-8") as out:
        count = 0
        for count, record in enumerate(records, 1):
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(path + ".part", path)
    return count


def run(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def distinct(records, most):
    seen = set()
    for record in records:
        if len(seen) == most:
            return
        if record["text"] not in seen:
            seen.add(record["text"])
            yield record


def prepare(options, place):
    """The corpus, its rows, and both indexes: each made once."""
    corpus, rows = place("corpus.jsonl"), place("rows.f32")
    if not os.path.exists(rows):
        note("encoding the corpus")
        real = write(place("real.jsonl"), distinct(passages(options.simplewiki), min(options.real, options.rows)))
        run(options.ask_peer, "encode", options.encoder, place("real.jsonl"), place("real.f32"))
        base = numpy.fromfile(place("real.f32"), numpy.float32).reshape(real, WIDTH)
        note(f"{real} passages; {options.rows - real} synthetic rows")
        generator = Generator(base, 0)
        with open(rows + ".part", "wb") as out:
            base.tofile(out)
            for number, first in enumerate(range(real, options.rows, BLOCK)):
                generator.block(number, min(BLOCK, options.rows - first)).astype(numpy.float32).tofile(out)
        filler = ({"id": f"synthetic-{i}", "title": "", "text": f"synthetic passage {i}"} for i in range(options.rows - real))
        with open(place("real.jsonl"), encoding="utf-8") as lines:
            write(corpus, (record for part in (map(json.loads, lines), filler) for record in part))
        os.replace(rows + ".part", rows)
    if not os.path.exists(place("index")):
        note("Sidenote's index")
        run(options.ask_peer, "build", options.encoder, corpus, rows, KIND, place("index.part"))
        with open(options.questions_file, encoding="utf-8") as lines, open(place("tuning.txt"), "w", encoding="utf-8") as out:
            out.writelines(json.loads(line)["question"] + "\n" for line in list(lines)[-TUNED:])
        run(options.sidenote, "index", "tune", place("index.part"), "--recall", RECALL, "-k", PASSAGES, "--queries", place("tuning.txt"),
            "--encoder", options.encoder, "--quiet")  # fmt: skip
        os.replace(place("index.part"), place("index"))
    if not os.path.exists(place("index.faiss")):
        note("faiss's index")
        run(sys.executable, os.path.join(HERE, "ask_python.py"), "build", rows, WIDTH, place("index.faiss.part"), options.threads)
        os.replace(place("index.faiss.part"), place("index.faiss"))
    if not os.path.exists(place("encoder-8-bits")):
        run(options.sidenote, "encoder", "quantise", options.encoder, "--out", place("encoder-8-bits"), "--quiet")
    refreshed = place(f"refreshed-{options.refreshed}")
    if not os.path.exists(refreshed):
        with open(place("real.jsonl"), encoding="utf-8") as lines:
            write(f"{refreshed}.jsonl", (json.loads(line) for _, line in zip(range(options.refreshed), lines)))
        run(options.sidenote, "index", "build", f"{refreshed}.jsonl", "--encoder", options.encoder, "--chunk-tokens", 2048, "--out",
            f"{refreshed}.part", "--quiet")  # fmt: skip
        os.replace(f"{refreshed}.part", refreshed)
    with open(options.questions_file, encoding="utf-8") as lines:
        return [json.loads(line)["question"] for _, line in zip(range(options.questions), lines)]


def encoders(options, place):
    return {OURS: options.encoder, OURS_8: place("encoder-8-bits")}


def embedding(options, place):
    """Workers that encode the same passages."""
    texts = place(f"embedded-{options.embedded}.json")
    with open(place("real.jsonl"), encoding="utf-8") as lines:
        chosen = [json.loads(line)["text"] for _, line in zip(range(options.embedded), lines)]
    with open(texts, "w", encoding="utf-8") as out:
        json.dump({"passages": chosen}, out)
    python = [sys.executable, os.path.join(HERE, "encode_python.py"), "sentence-transformers", options.encoder, texts, str(options.threads)]
    commands = {side: [options.encode_peer, encoder, texts] for side, encoder in encoders(options, place).items()} | {THEIRS: python}
    workers = {side: Worker(command, options.threads) for side, command in commands.items()}
    line = lambda side: f"passages {BATCH}" if side == THEIRS else "passages"
    return {side: lambda side=side: workers[side].ask(line(side)) for side in workers}


def refresh(options, place, side):
    """Seconds of a process that encodes a corpus again and leaves an index."""
    corpus, out = place(f"refreshed-{options.refreshed}"), place("fresh")
    subprocess.run(["rm", "-rf", out], check=True)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads), "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, os.path.join(HERE, "ask_python.py"), "refresh", options.encoder, f"{corpus}.jsonl", out, str(BATCH), str(options.threads)]
    if side != THEIRS:
        command = [options.sidenote, "index", "encode", corpus, "--encoder", encoders(options, place)[side], "--out", out, "--quiet"]
    done = subprocess.run([sys.executable, "-c", TIMED, *command], stdout=subprocess.PIPE, env=environment, text=True)
    if done.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout)


def asking(options, place):
    python = [sys.executable, os.path.join(HERE, "ask_python.py"), "ask", options.encoder, place("corpus.jsonl"), place("index.faiss"),
        options.reader, str(PASSAGES), str(TOKENS), str(options.threads)]  # fmt: skip
    ours = [options.ask_peer, "ask", place("index"), options.reader, str(PASSAGES), str(TOKENS)]
    return {OURS: Worker(ours, options.threads), THEIRS: Worker(python, options.threads)}


def exact(options, place, questions):
    """Ids of the nearest passages of each question, by comparing all."""
    texts, rows = place("asked.jsonl"), numpy.memmap(place("rows.f32"), numpy.float32, "r").reshape(-1, WIDTH)
    write(texts, ({"text": question} for question in questions))
    run(options.ask_peer, "encode", options.encoder, texts, place("asked.f32"))
    asked = numpy.fromfile(place("asked.f32"), numpy.float32).reshape(-1, WIDTH)
    scores, ids = numpy.empty((len(asked), 0), numpy.float32), numpy.empty((len(asked), 0), numpy.int64)
    for first in range(0, len(rows), BLOCK):
        block = asked @ rows[first : first + BLOCK].T
        scores = numpy.concatenate([scores, block], 1)
        ids = numpy.concatenate([ids, numpy.broadcast_to(numpy.arange(first, first + block.shape[1]), block.shape)], 1)
        best = numpy.argsort(-scores, 1)[:, :PASSAGES]
        scores, ids = numpy.take_along_axis(scores, best, 1), numpy.take_along_axis(ids, best, 1)
    wanted = set(ids.flatten().tolist())
    with open(place("corpus.jsonl"), encoding="utf-8") as lines:
        name = {i: json.loads(line)["id"] for i, line in enumerate(lines) if i in wanted}
    return [[name[i] for i in row] for row in ids.tolist()]


def measure(options, place, questions):
    nearest = exact(options, place, questions)
    embedders, workers, found = embedding(options, place), asking(options, place), {}
    for side in embedders:
        embedders[side]()
        found[side] = {"embedding": [], "refresh": [], "asking": []}
    for side in workers:
        workers[side].ask(questions[0])
    for turn in range(options.rounds):
        for side in found:
            found[side]["embedding"].append(embedders[side]())
            found[side]["refresh"].append(refresh(options, place, side))
            if side in workers:
                found[side]["asking"].append([workers[side].ask(question) for question in questions])
            note(f"turn {turn + 1} of {options.rounds}: {side}")
    middle, rows = statistics.median, []
    for side, own in found.items():
        rows.append({
            "system": side,
            "passages_per_second": round(options.embedded / middle(r["seconds"] for r in own["embedding"]), 1),
            "embedding_peak_bytes": max(r["peak_bytes"] for r in own["embedding"]),
            "refreshed_per_second": round(options.refreshed / middle(r["seconds"] for r in own["refresh"]), 1),
            "refresh_peak_bytes": max(r["peak_bytes"] for r in own["refresh"]),
        })  # fmt: skip
        if side not in workers:
            continue
        latency = [answer["seconds"] for turn in own["asking"] for answer in turn]
        first = own["asking"][0]
        right = [len(set(a["ids"]) & set(b)) / PASSAGES for a, b in zip(first, nearest)]
        same = [a["answer"] == b["answer"] for a, b in zip(first, found[OURS]["asking"][0]) if a["ids"] == b["ids"]]
        rows[-1] |= {
            "answers_per_second": round(middle([len(turn) / sum(a["seconds"] for a in turn) for turn in own["asking"]]), 3),
            "p50_seconds": round(middle(latency), 4),
            "p95_seconds": round(float(numpy.percentile(latency, 95)), 4),
            "search_p50_seconds": round(middle(a["search_seconds"] for turn in own["asking"] for a in turn), 4),
            "recall": round(statistics.mean(right), 3),
            "asking_peak_bytes": max(a["peak_bytes"] for turn in own["asking"] for a in turn),
            "same_answer": [sum(same), len(same)],
        }
    for worker in workers.values():
        worker.close()
    return rows


def table(result):
    *own, theirs = result["rows"]
    ours, size = own[0], result["sizes"]
    lines = ["# Asking, beside Python", "", f"{result['machine']}; {result['date']}. `{result['command']}`", ""]
    lines += [f"| | {OURS} | {OURS_8} | {THEIRS} | times |", "|---|--:|--:|--:|--:|"]
    shown = [
        ("passages encoded a second", "passages_per_second", 1, 1),
        ("passages a second, encoded again and indexed on disk", "refreshed_per_second", 1, 1),
        ("answers a second", "answers_per_second", 1, 1),
        ("a question, median seconds", "p50_seconds", 1, -1),
        ("a question, 95th of 100, seconds", "p95_seconds", 1, -1),
        ("of that the search, median seconds", "search_p50_seconds", 1, -1),
        ("peak MB while asking", "asking_peak_bytes", 1e6, -1),
        ("peak MB while encoding again", "refresh_peak_bytes", 1e6, -1),
    ]
    for name, key, unit, better in shown:
        digits = 0 if unit > 1 else 3 if better < 0 or ours[key] < 10 else 1
        cells = [f"{row[key] / unit:,.{digits}f}" if key in row else "" for row in (*own, theirs)]
        times = [row[key] / theirs[key] if better > 0 else theirs[key] / row[key] for row in own if key in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " | " + ", ".join(f"{x:.2f}" for x in times) + " |")
    lines.append(f"| recall at {PASSAGES} of the exact search | {ours['recall']:.3f} | | {theirs['recall']:.3f} | |")
    lines += ["", f"Index of {size['rows']:,} passages, of which {size['real']:,} are the corpus's own and **the rest synthetic vectors** with a text of "
        f"a few words; {size['questions']} questions of NQ-open, {PASSAGES} passages, {TOKENS} tokens at most; {size['embedded']:,} passages encoded, "
        f"{size['refreshed']:,} encoded again; medians over {size['rounds']} alternating turns. Sidenote reads the model's 4-bit blocks as they are, "
        "transformers in f32; encoders are in f32 where nothing else is said. Where both read the same passages "
        f"{theirs['same_answer'][0]} of {theirs['same_answer'][1]} answers are the same. Memory counts pages of mapped files."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sidenote", "ask_peer", "encode_peer", "encoder", "reader", "simplewiki", "questions_file", "work"):
        parser.add_argument(name, type=os.path.abspath)
    sizes = {"rows": 1_000_000, "real": 170_000, "questions": 100, "refreshed": 4000, "embedded": 640, "rounds": 3, "threads": 2}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    place = lambda name: os.path.join(options.work, name)
    questions = prepare(options, place)
    chosen = {name: getattr(options, name) for name in sizes}
    result = {"machine": processor(), "date": datetime.date.today().isoformat(), "sizes": chosen, "rows": measure(options, place, questions)}
    result["command"] = "benches/peers/ask.sh WORK ENCODER READER.gguf SIMPLEWIKI QUESTIONS.jsonl " + " ".join(f"--{k} {v}" for k, v in chosen.items())
    results = os.path.join(HERE, "..", "results")
    os.makedirs(results, exist_ok=True)
    with open(os.path.join(results, "ask.json"), "w", encoding="utf-8") as out:
        json.dump(result, out, indent=1)
    with open(os.path.join(results, "ask.md"), "w", encoding="utf-8") as out:
        out.write(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
