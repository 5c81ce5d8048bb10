"""The same weights for every system: the GGUF file dequantised to f32, for transformers and for llama.cpp.

    python generate_models.py MODEL.gguf FOLDER

FOLDER gets config.json and model.safetensors as transformers reads them, and model-f32.gguf. The numbers are those that the
file's blocks stand for, by the gguf package's own dequantisation.
"""

import json
import os
import sys

import gguf
import numpy
from safetensors.numpy import save_file

BLOCKS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def name_of(tensor):
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{BLOCKS[parts[2]]}.weight"
    return f"{OTHERS[parts[0]]}.weight"


def unturned(weight, heads):
    """GGUF's rotary embedding turns neighbours, transformers' the halves of a head: the rows in the latter's order."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    source, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    reader = gguf.GGUFReader(source)
    field = lambda name: reader.fields[f"llama.{name}"].contents()
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    tensors = {t.name: numpy.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), numpy.float32) for t in reader.tensors}

    writer = gguf.GGUFWriter(os.path.join(folder, "model-f32.gguf"), "llama")
    for name, known in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = known.types[0]
        writer.add_key_value(name, known.contents(), kind, known.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensors[tensor.name].reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    renamed = {}
    for tensor in reader.tensors:
        value = tensors[tensor.name]
        if ".attn_q." in tensor.name:
            value = unturned(value, heads)
        elif ".attn_k." in tensor.name:
            value = unturned(value, kv_heads)
        renamed[name_of(tensor)] = numpy.ascontiguousarray(value)
    save_file(renamed, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "vocab_size": field("vocab_size"),
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": field("rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in renamed,
        "bos_token_id": reader.fields["tokenizer.ggml.bos_token_id"].contents(),
        "eos_token_id": reader.fields["tokenizer.ggml.eos_token_id"].contents(),
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as out:
        json.dump(config, out, indent=1)


if __name__ == "__main__":
    main()
