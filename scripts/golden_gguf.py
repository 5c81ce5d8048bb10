"""Writes tests/data/models/gguf: small GGUF files of random weights, and what transformers makes of them.

For each architecture that Sidenote reads from GGUF: NAME.gguf, written as llama.cpp's converter
does (rows of q and k in pairs for llama, Gemma's norms plus one, GPT-2's matrices turned), with a
small vocabulary; and in golden.safetensors the logits of transformers' own model on the same
weights. Before they are kept, transformers' own GGUF reader must agree. blocks.gguf has one tensor
of every block type, blocks.safetensors what the gguf package dequantises them to.
texts.json has texts and the ids that transformers' tokenizers (made out of the same files) give.

    python scripts/golden_gguf.py tests/data/models/gguf      # torch, transformers, accelerate, gguf, safetensors
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers as hf
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Q
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

OUT = pathlib.Path(sys.argv[1])
TEXT = (
    "The river runs past the old mill in 1984, and the miller's daughter doesn't mind. "
    "Rivers run to the sea; the sea is not full. She sells 12345 sea shells there, they say. "
)
TEXTS = [
    "The river runs", "  two spaces and\ta tab", "naïve façade 東京 🦀", "it's 1984: they'll say 12345!",
    "for (int i = 0; i < 10; i++) {\n    x += i;\n}\n\n", "", " ", "\n\n\n", "ends with space ",
    "a<0x0A>b", "ｆｕｌｌ　ｗｉｄｔｈ ١٢٣ Ⅻ ½", "don't DON'T we'Ve", "e\u0301 é",
]


def byte_level(size):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    trained.train_from_iterator([TEXT], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    assert len(tokens) == size, len(tokens)
    return tokens, [3] + [1] * (size - 1), merges


def pieces(size):
    """A vocabulary as SentencePiece's BPE has it: control tokens, bytes, then pieces by rank."""
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator(
        [("▁" + TEXT).replace(" ", "▁")], trainers.BpeTrainer(vocab_size=size - 259, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    found = sorted(model["vocab"], key=model["vocab"].get)
    letters, longer = [t for t in found if len(t) == 1], [t for t in found if len(t) > 1]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + longer + letters
    assert len(tokens) == size, len(tokens)
    scores = [0.0] * 259 + [-float(i) for i in range(size - 259)]
    return tokens, [2, 3, 3] + [6] * 256 + [1] * (size - 259), scores


def pair(weights, heads):
    """llama.cpp's permutation of the rows of q and k."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


LLAMA_LIKE = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}
GEMMA = LLAMA_LIKE | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GPT2 = {
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
WHOLE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}
QUANTISED = {"attn_v": Q.Q8_0, "attn_output": Q.Q5_1, "ffn_gate": Q.Q4_1, "ffn_up": Q.Q5_0, "ffn_down": Q.Q4_0, "attn_q": Q.Q8_0}


def name_of(name, parts):
    stem, kind = name.rsplit(".", 1)
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    words = stem.split(".")
    return f"blk.{words[2]}.{parts['.'.join(words[3:])]}.{kind}"


def write(arch, model, parts, metadata, vocabulary, quantised):
    path = OUT / f"{arch}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        {int: writer.add_uint32, float: writer.add_float32}[type(value)](f"{arch}.{key}", value)
    tokens, types, rest = vocabulary
    if isinstance(rest[0], str):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre({"qwen2": "qwen2", "qwen3": "qwen2", "gpt2": "gpt-2", "gemma3": "smollm"}[arch])
        writer.add_token_merges(rest)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(rest)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template("{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    config = model.config
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            new = name_of(name, parts)
            values = tensor.numpy().astype(np.float32)
            turned = arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            part = new.split(".")[2] if new.startswith("blk.") else ""
            kind = Q.F16 if values.ndim == 2 else Q.F32
            if quantised and values.ndim == 2 and part in QUANTISED:
                kind = QUANTISED[part]
            if arch == "qwen3" and values.ndim == 2:
                kind = Q.BF16
            ours = values.T.copy() if turned else values
            if arch == "llama" and part in ("attn_q", "attn_k"):
                ours = pair(ours, config.num_attention_heads if part == "attn_q" else config.num_key_value_heads)
            if arch == "gemma3" and "norm" in part + new.split(".")[0]:
                ours = ours + 1
            raw = gguf.quants.quantize(ours, kind) if kind != Q.F32 else ours
            writer.add_tensor(new, raw, raw_dtype=kind)
            # The model computes with what the file holds.
            back = gguf.quants.dequantize(raw, kind) if kind != Q.F32 else ours
            if arch == "gemma3" and "norm" in part + new.split(".")[0]:
                back = back - 1
            if arch == "llama" and part in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
                back = back.reshape(heads, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
            tensor.copy_(torch.from_numpy((back.T if turned else back).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def randomise(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    common = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64, rope_theta=5000.0)
    meta = {"embedding_length": 32, "feed_forward_length": 64, "block_count": 2, "context_length": 64,
            "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 5000.0}
    bpe, spm = byte_level(288), pieces(320)
    cases = [
        ("llama", hf.LlamaForCausalLM(hf.LlamaConfig(
            **common, vocab_size=320, rms_norm_eps=1e-5, tie_word_embeddings=False)),
         LLAMA_LIKE, meta | {"rope.dimension_count": 8}, spm, True),
        ("qwen2", hf.Qwen2ForCausalLM(hf.Qwen2Config(**common, vocab_size=288, rms_norm_eps=1e-5, tie_word_embeddings=True)),
         LLAMA_LIKE, meta, bpe, False),
        ("qwen3", hf.Qwen3ForCausalLM(hf.Qwen3Config(
            **common, vocab_size=288, rms_norm_eps=1e-5, head_dim=12, tie_word_embeddings=True)),
         LLAMA_LIKE, meta | {"attention.key_length": 12, "attention.value_length": 12}, bpe, False),
        ("gemma3", hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(
            **(common | {"num_hidden_layers": 6, "intermediate_size": 32}), vocab_size=288, rms_norm_eps=1e-5, head_dim=8, sliding_window=4,
            query_pre_attn_scalar=8, rope_local_base_freq=10000.0, tie_word_embeddings=True)),
         GEMMA, meta | {"block_count": 6, "feed_forward_length": 32, "attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 4}, bpe, False),
        ("gpt2", hf.GPT2LMHeadModel(hf.GPT2Config(
            vocab_size=288, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=64, bos_token_id=0, eos_token_id=0)),
         GPT2, {"embedding_length": 32, "feed_forward_length": 64, "block_count": 2, "context_length": 64,
                "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5}, bpe, False),
    ]
    golden, texts = {}, {}
    for seed, (arch, model, parts, metadata, vocabulary, quantised) in enumerate(cases):
        randomise(model, seed)
        path = write(arch, model, parts, metadata, vocabulary, quantised)
        tokens = torch.randint(3, len(vocabulary[0]), (1, 9))
        with torch.no_grad():
            logits = model(tokens).logits
        golden[f"{arch}.tokens"] = tokens[0].numpy().astype(np.int64)
        golden[f"{arch}.logits"] = logits[0].numpy()
        try:
            theirs = hf.AutoModelForCausalLM.from_pretrained(OUT, gguf_file=path.name, config=model.config, dtype=torch.float32).eval()
            with torch.no_grad():
                off = (theirs(tokens).logits - logits).abs().max().item()
            print(arch, "transformers' own reading differs by", off)
        except Exception as e:
            print(arch, "transformers cannot read it:", repr(e)[:300])
        try:
            tokenizer = hf.AutoTokenizer.from_pretrained(OUT, gguf_file=path.name)
            ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
            texts[arch] = [{"text": text, "ids": ids(text)} for text in TEXTS]
        except Exception as e:
            print(arch, "transformers cannot read its tokenizer:", repr(e)[:300])
    save_file(golden, OUT / "golden.safetensors")
    (OUT / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0))
    blocks()


def blocks():
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(OUT / "blocks.gguf", "llama")
    values = {}
    for kind in (Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0):
        raw = gguf.quants.quantize(rng.standard_normal((3, 64), np.float32), kind)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        values[kind.name] = gguf.quants.dequantize(raw, kind)
    # The package does not write these: random bytes with scales that are small numbers.
    scales = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}
    for kind, places in scales.items():
        block, size = GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (2, size), np.uint8)
        for place in places:
            raw[:, place:place + 2] = np.array([[0.01], [0.02]], np.float16).view(np.uint8)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        values[kind.name] = gguf.quants.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({name: v.astype(np.float32) for name, v in values.items()}, OUT / "blocks.safetensors")


main()
