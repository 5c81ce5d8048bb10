"""transformers' and llama.cpp's sides of generate.py: read prompts and continue them greedily, timed apart.

    python generate_peers.py transformers FOLDER|llama MODEL.gguf THREADS

Each line of standard input is `BATCH PROMPT TOKENS`; the answers are those of examples/generate_peer.rs.
"""

import json
import sys
import time


def prompt(row, length, vocabulary):
    return [(i * 7919 + row * 104729 + 13) % (vocabulary - 200) + 100 for i in range(length)]


def peak():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def transformers(folder, threads):
    """The plain loop of forward passes over its own cache: less around it than in its generate()."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(batch, length, tokens):
        ids = torch.tensor([prompt(row, length, model.config.vocab_size) for row in range(batch)])
        begin = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        following = out.logits[:, -1].argmax(-1)
        prompt_seconds = time.perf_counter() - begin
        text = []
        begin = time.perf_counter()
        for _ in range(tokens):
            text.append(following.tolist())
            out = model(input_ids=following[:, None], past_key_values=out.past_key_values, use_cache=True)
            following = out.logits[:, -1].argmax(-1)
        seconds = time.perf_counter() - begin
        return prompt_seconds, seconds, [list(row) for row in zip(*text)]

    return run


def llama(path, threads):
    """llama.cpp through llama-cpp-python's functions of the same names, sequences side by side in one batch."""
    import ctypes

    import llama_cpp as c
    import numpy

    quiet = c.llama_log_callback(lambda level, text, data: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def run(batch, length, tokens, kept=[quiet]):
        options = c.llama_context_default_params()
        options.n_ctx = batch * (-(-(length + tokens + 1) // 256) * 256)
        options.n_batch = batch * length
        options.n_ubatch = 512
        options.n_seq_max = batch
        options.n_threads = options.n_threads_batch = threads
        context = c.llama_init_from_model(model, options)
        memory = c.llama_batch_init(batch * length, 0, 1)

        def read(ids, first):
            """The likeliest token after each row of ids, which begin at position `first`."""
            memory.n_tokens = batch * len(ids[0])
            at, ends = 0, []
            for row, row_ids in enumerate(ids):
                for i, token in enumerate(row_ids):
                    memory.token[at] = token
                    memory.pos[at] = first + i
                    memory.n_seq_id[at] = 1
                    memory.seq_id[at][0] = row
                    memory.logits[at] = i + 1 == len(row_ids)
                    at += 1
                ends.append(at - 1)
            if c.llama_decode(context, memory) != 0:
                raise RuntimeError("llama_decode failed")
            views = [numpy.ctypeslib.as_array(c.llama_get_logits_ith(context, end), (vocabulary,)) for end in ends]
            return [int(view.argmax()) for view in views]

        prompts = [prompt(row, length, vocabulary) for row in range(batch)]
        begin = time.perf_counter()
        following = read(prompts, 0)
        prompt_seconds = time.perf_counter() - begin
        text = []
        begin = time.perf_counter()
        for step in range(tokens):
            text.append(following)
            following = read([[token] for token in following], length + step)
        seconds = time.perf_counter() - begin
        c.llama_batch_free(memory)
        c.llama_free(context)
        return prompt_seconds, seconds, [list(row) for row in zip(*text)]

    return run


def main():
    kind, path, threads = sys.argv[1:]
    run = {"transformers": transformers, "llama": llama}[kind](path, int(threads))
    for line in sys.stdin:
        prompt_seconds, seconds, tokens = run(*(int(number) for number in line.split()))
        answer = {"prompt_seconds": prompt_seconds, "seconds": seconds, "tokens": tokens, "peak_bytes": peak()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
