"""The peers' side of ask.py: sentence-transformers, faiss and transformers.

    python ask_python.py ask ENCODER CORPUS.jsonl INDEX.faiss READER PASSAGES TOKENS THREADS
    python ask_python.py build ROWS.f32 WIDTH INDEX.faiss THREADS
    python ask_python.py refresh ENCODER CORPUS.jsonl INDEX.faiss BATCH THREADS

READER is MODEL.gguf, which transformers reads into f32. `ask` has the protocol of examples/ask_peer.rs. `refresh` encodes a corpus and
builds and writes its index: Python's `index encode`.
"""

import json
import os
import sys
import time

import faiss
import numpy

LISTS_READ = 64


def peak():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def documents(corpus):
    with open(corpus, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def index_of(rows):
    """Inverted lists, the square root of the rows of them; cosines are inner products of unit vectors."""
    lists = max(1, int(len(rows) ** 0.5))
    index = faiss.index_factory(rows.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows[numpy.sort(numpy.random.default_rng(0).choice(len(rows), min(len(rows), 64 * lists), replace=False))])
    for first in range(0, len(rows), 1 << 16):
        index.add(rows[first : first + (1 << 16)])
    return index


def build(rows, width, path, threads):
    faiss.omp_set_num_threads(int(threads))
    faiss.write_index(index_of(numpy.memmap(rows, numpy.float32, "r").reshape(-1, int(width))), path)


def encoder_of(folder, threads):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(threads))
    return SentenceTransformer(folder, device="cpu")


def refresh(encoder, corpus, path, batch, threads):
    faiss.omp_set_num_threads(int(threads))
    texts = [document["text"] for document in documents(corpus)]
    encode = encoder_of(encoder, threads).encode
    rows = encode(texts, batch_size=int(batch), normalize_embeddings=True, show_progress_bar=False)
    faiss.write_index(index_of(rows), path)
    print(json.dumps({"rows": len(rows), "peak_bytes": peak()}))


def ask(encoder, corpus, path, reader, passages, tokens, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    faiss.omp_set_num_threads(int(threads))
    texts = documents(corpus)
    index = faiss.read_index(path)
    index.nprobe = LISTS_READ
    encode = encoder_of(encoder, threads).encode
    place = {"gguf_file": os.path.basename(reader)}
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(reader), **place)
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(reader), dtype=torch.float32, **place).eval()

    def found(question):
        row = encode([question], normalize_embeddings=True, show_progress_bar=False)
        return [texts[i] for i in index.search(row, int(passages))[1][0] if i >= 0]

    @torch.inference_mode()
    def answer(question):
        read = found(question)
        content = "Answer the question in a few words, from these passages.\n\n"
        content += "".join(f"{p['title']}: {' '.join(p['text'].split())}\n\n" for p in read) + f"Question: {question}"
        said = tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
            return_tensors="pt", return_dict=True)  # fmt: skip
        written = model.generate(**said, max_new_tokens=int(tokens), do_sample=False)
        text = tokenizer.decode(written[0, said["input_ids"].shape[1] :], skip_special_tokens=True)
        return read, (text.strip().splitlines() or [""])[0].strip()

    for line in sys.stdin:
        question = line.strip()
        begin = time.perf_counter()
        read, text = answer(question)
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        found(question)
        search_seconds = time.perf_counter() - begin
        ids = [document["id"] for document in read]
        said = {"seconds": seconds, "search_seconds": search_seconds, "answer": text, "ids": ids, "peak_bytes": peak()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    {"ask": ask, "build": build, "refresh": refresh}[sys.argv[1]](*sys.argv[2:])
