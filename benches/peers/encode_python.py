"""The peers' side of encode.py: encodes lists of texts, as often as standard input asks for.

    python encode_python.py onnxruntime|onnxruntime-workers|sentence-transformers MODEL TEXTS.json THREADS [MODEL.onnx]

The protocol is that of examples/encode_peer.rs, but that a line is `NAME BATCH`. `onnxruntime` cuts each product among
the threads; `onnxruntime-workers` gives each thread batches of its own.
"""

import concurrent.futures
import json
import resource
import sys
import time

import numpy


def normalised(rows):
    return rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def with_onnxruntime(model, threads, file, workers):
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if workers else threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def encode(texts, batch):
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = numpy.empty((len(ids), 384), numpy.float32)

        def run(first):
            chosen = order[first : first + batch]
            width = max(len(ids[i]) for i in chosen)
            tokens, mask = numpy.zeros((2, len(chosen), width), numpy.int64)
            for row, i in enumerate(chosen):
                tokens[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            (states,) = session.run(None, {"input_ids": tokens, "attention_mask": mask})
            weights = mask[:, :, None].astype(numpy.float32)
            out[chosen] = (states * weights).sum(1) / weights.sum(1)

        firsts = range(0, len(order), batch)
        # Longest first, so that the threads end together.
        list(pool.map(run, reversed(firsts))) if workers else [run(first) for first in firsts]
        return normalised(out)

    return encode


def with_sentence_transformers(model, threads):
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    return lambda texts, batch: encoder.encode(
        texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
    )


def main():
    system, model, texts, threads = sys.argv[1:5]
    with open(texts, encoding="utf-8") as file:
        texts = json.load(file)
    if system == "sentence-transformers":
        encode = with_sentence_transformers(model, int(threads))
    else:
        encode = with_onnxruntime(model, int(threads), sys.argv[5], system == "onnxruntime-workers")
    for line in sys.stdin:
        name, batch = line.split()
        clock, processors = time.perf_counter(), time.process_time()
        vectors = encode(texts[name], int(batch))
        answer = {
            "seconds": time.perf_counter() - clock,
            "processor_seconds": time.process_time() - processors,
            "vectors": [[float(x) for x in row] for row in vectors[:8]],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
