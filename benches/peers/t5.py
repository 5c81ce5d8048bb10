"""Tokens a second of Sidenote beside transformers with encoder-decoders: the same weights, prompts and threads, in turns.

    python t5.py GENERATE_PEER FOLDER [--shapes small,base] [--batches 1,8] [--prompt 128] [--tokens 64] [--rounds 5]

GENERATE_PEER is the program made from examples/generate_peer.rs. The weights are random, of the shapes of T5 v1.1 small
and base, and are written to FOLDER; needs torch and transformers. Rows go to benches/results/t5.json and t5.md.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
import time

from generate import agree, version
from generate_peers import peak, prompt
from train import Worker, processor

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "..", "..", "tests", "data", "models", "t5_v1_0", "tokenizer.json")
SHAPES = {
    "small": dict(d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6),
    "base": dict(d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12),
}


def write(folder, shape):
    """A checkpoint with random weights, unless it is there."""
    if os.path.exists(os.path.join(folder, "tokenizer.json")):
        return
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, **SHAPES[shape]
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(TOKENIZER, folder)


def serve(folder, threads):
    """transformers' side: answers as examples/generate_peer.rs does."""
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    torch.set_num_threads(threads)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(batch, length, tokens):
        ids = torch.tensor([prompt(row, length, model.config.vocab_size) for row in range(batch)])
        begin = time.perf_counter()
        encoded = BaseModelOutput(last_hidden_state=model.encoder(input_ids=ids).last_hidden_state)
        following, cache = torch.zeros(batch, dtype=torch.long), None
        out = model(encoder_outputs=encoded, decoder_input_ids=following[:, None], use_cache=True)
        following, cache = out.logits[:, -1].argmax(-1), out.past_key_values
        prompt_seconds = time.perf_counter() - begin
        text = []
        begin = time.perf_counter()
        for _ in range(tokens):
            text.append(following.tolist())
            out = model(encoder_outputs=encoded, decoder_input_ids=following[:, None], past_key_values=cache, use_cache=True)
            following, cache = out.logits[:, -1].argmax(-1), out.past_key_values
        return prompt_seconds, time.perf_counter() - begin, [list(row) for row in zip(*text)]

    for line in sys.stdin:
        prompt_seconds, seconds, text = run(*map(int, line.split()))
        answer = {"prompt_seconds": prompt_seconds, "seconds": seconds, "tokens": text, "peak_bytes": peak()}
        print(json.dumps(answer), flush=True)


def main():
    if sys.argv[1] == "serve":
        return serve(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--shapes", default="small,base")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    peer, rows = f"transformers {version('transformers')}", []
    for shape in options.shapes.split(","):
        folder = os.path.join(options.folder, f"t5-{shape}")
        write(folder, shape)
        commands = {
            "sidenote": [options.program, folder],
            peer: [sys.executable, __file__, "serve", folder, str(options.threads)],
        }
        workers = {system: Worker(command) for system, command in commands.items()}
        for batch in map(int, options.batches.split(",")):
            answers = {system: [] for system in workers}
            for turn in range(options.rounds + 1):
                for system, worker in workers.items():
                    answer = worker.ask(f"{batch} {options.prompt} {options.tokens}")
                    if turn > 0:
                        answers[system].append(answer)
            common, total = agree(answers[peer][0]["tokens"], answers["sidenote"][0]["tokens"])
            row = {"shape": shape, "batch": batch, "tokens_in_common": f"{common} of {total}"}
            for system, runs in answers.items():
                row[system] = {
                    "prompt_tokens_per_second": round(statistics.median(batch * options.prompt / r["prompt_seconds"] for r in runs), 1),
                    "tokens_per_second": round(statistics.median(batch * options.tokens / r["seconds"] for r in runs), 1),
                    "peak_bytes": runs[-1]["peak_bytes"],
                }
            rows.append(row)
        for worker in workers.values():
            worker.close()
    date = datetime.date.today().isoformat()
    result = {"machine": processor(), "date": date, "threads": options.threads, "rounds": options.rounds, "peer": peer, "rows": rows}
    results = os.path.join(HERE, "..", "results")
    with open(os.path.join(results, "t5.json"), "w") as out:
        json.dump(result, out, indent=1)
    lines = [
        "# Encoder-decoders, greedy, side by side\n",
        f"{result['machine']}; {date}. Random weights in f32, of the shapes of T5 v1.1; prompts of {options.prompt} tokens, of which "
        f"{options.tokens} are written; medians over {options.rounds} rounds in turns, {options.threads} threads.\n",
        f"| shape | batch | prompt tokens/s, Sidenote | {peer} | ratio | tokens/s, Sidenote | {peer} | ratio | peak MB, Sidenote | {peer} | tokens in common |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        own, other = row["sidenote"], row[peer]
        cells = [row["shape"], row["batch"]]
        for name in ("prompt_tokens_per_second", "tokens_per_second"):
            cells += [f"{own[name]:,.0f}", f"{other[name]:,.0f}", f"{own[name] / other[name]:.2f}"]
        cells += [f"{system['peak_bytes'] / 1e6:,.0f}" for system in (own, other)] + [row["tokens_in_common"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    with open(os.path.join(results, "t5.md"), "w") as out:
        out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
