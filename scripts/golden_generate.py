"""Makes tests/data/generate: a small random Llama checkpoint and what transformers writes with it.

    python scripts/golden_generate.py tests/data/generate

Needs torch, transformers and tokenizers. `expected.json` holds, for prompts of uneven lengths read as one left-padded
batch: greedy texts, with and without a repetition penalty; beam search with its scores; and the distributions that
transformers draws from after its logits processors, in its own order.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, END, SECOND_END = 61, 1, 7
PROMPTS = [[5, 9, 33, 12, 47], [8], [60, 2, 2, 19, 30, 41, 22, 3, 17], [25, 50, 13]]
GREEDY = [{}, {"repetition_penalty": 1.4}, {"repetition_penalty": 0.8}]
BEAMS = [
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0},
    {"num_beams": 2, "num_return_sequences": 1, "length_penalty": 2.0, "repetition_penalty": 1.3},
    {"num_beams": 5, "num_return_sequences": 5, "length_penalty": -0.5, "eos_token_id": [END, SECOND_END]},
    # Texts that end come to be ranked below the beams, where they are not kept.
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0,
     "eos_token_id": [END, 20, 21, 22, 31, 36, 39, 42, 55]},
    # With so many ends twice as many candidates as beams are not enough to go on with.
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 2.0,
     "eos_token_id": [END, 2, 7, 10, 22, 29, 38, 45, 50]},
]
SAMPLING = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.5, "top_p": 0.6, "repetition_penalty": 1.5},
    {"temperature": 2.5, "top_k": 40, "min_p": 0.2, "repetition_penalty": 0.7},
]
TOKENS = 16


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, initializer_range=0.35, bos_token_id=0, eos_token_id=END, pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # Ends come up often enough for the rules around them to matter.
        model.lm_head.weight[END] *= 1.5
        model.lm_head.weight[SECOND_END] *= 1.5
    model.save_pretrained(out, safe_serialization=True)
    (out / "generation_config.json").unlink()
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)

    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])

    def generate(**options):
        options = {"max_new_tokens": TOKENS, "do_sample": False, "top_k": 0, "return_dict_in_generate": True,
                   "output_scores": True, "output_logits": True} | options
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, **options)

    def written(row, ends):
        row = row[longest:].tolist()
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        return row[:end]

    expected = {"transformers": transformers.__version__, "prompts": PROMPTS, "max_tokens": TOKENS,
                "greedy": [], "beams": [], "distributions": [], "logprobs": []}
    for options in GREEDY:
        result = generate(**options)
        expected["greedy"].append({"options": options, "texts": [written(row, [END]) for row in result.sequences]})
        if not options:
            logprobs = torch.stack(result.logits, 1).log_softmax(-1)
            for row, line in zip(result.sequences, logprobs):
                text = written(row, [END])
                expected["logprobs"].append([round(line[i, token].item(), 6) for i, token in enumerate(text)])
    for options in BEAMS:
        result = generate(**options)
        ends = options.get("eos_token_id", [END])
        n = options["num_return_sequences"]
        texts = [written(row, ends) for row in result.sequences]
        scores = [round(score, 6) for score in result.sequences_scores.tolist()]
        rows = [list(zip(texts[i:i + n], scores[i:i + n])) for i in range(0, len(texts), n)]
        expected["beams"].append({"options": options, "texts": rows})
    for options in SAMPLING:
        result = generate(**(options | {"do_sample": True, "max_new_tokens": 1}))
        rows = [
            [[token, round(p, 7)] for token, p in enumerate(row.tolist()) if p > 0]
            for row in result.scores[0].softmax(-1)
        ]
        expected["distributions"].append({"options": options, "rows": rows})
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items())
    (out / "expected.json").write_text("{\n" + lines + "\n}\n")
    print({len(text) for entry in expected["greedy"] for text in entry["texts"]})


main(Path(sys.argv[1]))
