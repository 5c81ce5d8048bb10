#!/usr/bin/env python3
"""Makes tests/data/models/FAMILY: small decoders of every family with random weights, uneven sizes, biases off 0
and norms off 1, as transformers saves them; and golden.safetensors, the logits that transformers computes in f32
for two uneven prompts. Mistral's is stored in bf16, Qwen2's in f16.

    pip install torch transformers
    python3 scripts/golden_models.py

With a folder as argument it makes nothing: it loads the model in it with transformers, prints the largest
difference between its logits and those of golden.safetensors in the second folder, and fails above 1e-4:

    python3 scripts/golden_models.py SAVED GOLDEN
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import AutoConfig, AutoModelForCausalLM

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "models"
VOCABULARY = 97
PROMPTS = [[5, 90, 17, 3, 3, 61, 8], [(7 * i * i + 11 * i + 2) % VOCABULARY for i in range(19)]]

SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)
USUAL_HEADS = {name: size for name, size in SHAPE.items() if name != "head_dim"}
FAMILIES = {
    "llama": dict(
        SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rms_norm_eps=1e-3,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0,
                             original_max_position_embeddings=16),
    ),
    "mistral": dict(SHAPE, sliding_window=5, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5)),
    "qwen2": {**USUAL_HEADS, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4,
              "max_window_layers": 1, "rope_parameters": dict(rope_type="default", rope_theta=1e4)},
    "qwen3": dict(SHAPE, tie_word_embeddings=False, attention_bias=True,
                  rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "gemma3_text": dict(
        SHAPE, query_pre_attn_scalar=13, sliding_window=6, num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=100.0),
                             full_attention=dict(rope_type="linear", rope_theta=1e5, factor=8.0)),
    ),
    "stablelm": dict(
        {**USUAL_HEADS, "hidden_size": 36, "num_hidden_layers": 2}, use_qkv_bias=True, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.7),
    ),
    "gpt2": dict(vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=6, n_inner=44, n_positions=40, bos_token_id=2,
                 eos_token_id=2),
    "opt": dict(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=3, num_attention_heads=6, ffn_dim=44,
                max_position_embeddings=40, word_embed_proj_dim=24, bos_token_id=2, eos_token_id=2, pad_token_id=None),
    "bloom": dict(vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=6, bos_token_id=1, eos_token_id=2),
}
DTYPES = {"mistral": torch.bfloat16, "qwen2": torch.float16}


def logits(model, prompts):
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0].float().contiguous() for prompt in prompts]


def make(family: str, settings: dict, seed: int):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                table = "embed" in name or "wte" in name or "wpe" in name
                parameter.copy_(noise * (0.6 if table else 0.25))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.add_(0.3 * noise)
    dtype = DTYPES.get(family, torch.float32)
    folder = DATA / family
    model.to(dtype).save_pretrained(folder)
    # Read again, so that nothing but the weights has been rounded.
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    out = {}
    for i, (prompt, values) in enumerate(zip(PROMPTS, logits(model, PROMPTS))):
        out[f"tokens.{i}"], out[f"logits.{i}"] = torch.tensor(prompt, dtype=torch.int64), values
    save_file(out, folder / "golden.safetensors")
    generation = folder / "generation_config.json"
    generation.unlink(missing_ok=True)
    spread = max(values.std().item() for values in logits(model, PROMPTS))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{family}: {sum(p.numel() for p in model.parameters())} weights, {size} bytes, logits spread {spread:.2f}")


def tokenizer():
    """One letter a token, for all the models."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>"] + letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    assert made.get_vocab_size() == VOCABULARY
    made.save(str(DATA / "tokenizer.json"))


def check(saved: str, golden: str):
    model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager", dtype=torch.float32).eval()
    expected = load_file(Path(golden) / "golden.safetensors")
    prompts = [expected[f"tokens.{i}"].tolist() for i in range(len(PROMPTS))]
    worst = max((got - expected[f"logits.{i}"]).abs().max().item() for i, got in enumerate(logits(model, prompts)))
    print(json.dumps({"model": type(model).__name__, "largest_difference": worst}))
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check(*sys.argv[1:])
    DATA.mkdir(parents=True, exist_ok=True)
    tokenizer()
    for seed, (family, settings) in enumerate(FAMILIES.items()):
        make(family, settings, seed)
