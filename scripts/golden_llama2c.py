"""Writes tests/data/models/llama2c/expected.json: what llama2.c (run.c of github.com/karpathy/llama2.c) says.

The forward pass, the tokenizer and the greedy loop of run.c in numpy, line by line: rotary pairs
of neighbours, the best-scoring merge first, a space before every text, bytes for unknown letters.

    python scripts/golden_llama2c.py tests/data/models/llama2c      # numpy
"""

import json
import pathlib
import struct
import sys

import numpy as np

folder = pathlib.Path(sys.argv[1])
raw = (folder / "stories260K.bin").read_bytes()
dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
assert vocab > 0, "a head of its own is not read here"
numbers, at = np.frombuffer(raw, np.float32, offset=28), 0


def take(*shape):
    global at
    count = int(np.prod(shape))
    at += count
    return numbers[at - count:at].reshape(shape)


size, kv = dim // heads, dim // heads * kv_heads
embedding = take(vocab, dim)
norm1 = take(layers, dim)
wq, wk, wv, wo = take(layers, dim, dim), take(layers, kv, dim), take(layers, kv, dim), take(layers, dim, dim)
norm2 = take(layers, dim)
w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
last = take(dim)

words, bytes_of = [], (folder / "tok512.bin").read_bytes()
place = 4
for _ in range(vocab):
    score, length = struct.unpack("fi", bytes_of[place:place + 8])
    words.append((bytes_of[place + 8:place + 8 + length], score))
    place += 8 + length
ids = {}
for i, (word, _) in enumerate(words):
    ids.setdefault(word, i)


def encode(text):
    tokens = [1]
    if text:
        tokens.append(ids[b" "])
    for letter in text:
        letter = letter.encode()
        tokens.extend([ids[letter]] if letter in ids else [byte + 3 for byte in letter])
    while True:
        best, best_at = -1e10, None
        for i in range(len(tokens) - 1):
            merged = ids.get(words[tokens[i]][0] + words[tokens[i + 1]][0])
            if merged is not None and words[merged][1] > best:
                best, best_at, best_id = words[merged][1], i, merged
        if best_at is None:
            return tokens
        tokens[best_at:best_at + 2] = [best_id]


def rmsnorm(x, weight):
    return weight * (x / np.sqrt((x * x).mean() + 1e-5))


def rotate(x, position):
    out = x.copy()
    for i in range(0, len(x), 2):
        angle = position / 10000.0 ** ((i % size) / size)
        a, b = x[i], x[i + 1]
        out[i], out[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return out


def forward(token, position, keys, values):
    x = embedding[token].astype(np.float64)
    for l in range(layers):
        h = rmsnorm(x, norm1[l])
        q, k, v = rotate(wq[l] @ h, position), rotate(wk[l] @ h, position), wv[l] @ h
        keys[l].append(k)
        values[l].append(v)
        mixed = np.zeros(dim)
        for head in range(heads):
            at_q, at_kv = slice(head * size, (head + 1) * size), slice(head // (heads // kv_heads) * size, None)
            at_kv = slice(at_kv.start, at_kv.start + size)
            scores = np.array([q[at_q] @ past[at_kv] for past in keys[l]]) / np.sqrt(size)
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
            mixed[at_q] = sum(s * past[at_kv] for s, past in zip(scores, values[l]))
        x = x + wo[l] @ mixed
        h = rmsnorm(x, norm2[l])
        gate = w1[l] @ h
        x = x + w2[l] @ (gate / (1 + np.exp(-gate)) * (w3[l] @ h))
    return embedding @ rmsnorm(x, last)


def generate(prompt, steps):
    tokens = encode(prompt)
    keys, values = [[] for _ in range(layers)], [[] for _ in range(layers)]
    out, first = [], None
    for position in range(steps):
        logits = forward(tokens[position], position, keys, values)
        if position + 1 < len(tokens):
            continue
        first = logits if first is None else first
        following = int(np.argmax(logits))
        if following == 1:
            break
        tokens.append(following)
        out.append(following)
    return out, first


cases = []
for prompt in ["Once upon a time", "", "Lily and Ben", "  The  naïve\ncat said: 42!"]:
    out, first = generate(prompt, 60)
    text = b"".join(words[t][0] for t in out).decode(errors="replace")
    print(repr(prompt), "->", repr(text))
    cases.append({"prompt": prompt, "tokens": encode(prompt), "generated": out, "text": text,
                  "logits": [round(float(x), 5) for x in first]})
(folder / "expected.json").write_text(json.dumps(cases, ensure_ascii=False) + "\n")
