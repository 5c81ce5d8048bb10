#!/usr/bin/env python3
"""Makes tests/data/models/t5_*: small random-weight T5 v1.0, T5 v1.1 (stored in f16) and mT5 checkpoints of
uneven sizes, with what transformers makes of them: encoder states, logits, greedy generations, buckets of the
relative positions and the tokens of texts; and tests/data/encoder/t5_dense, a sentence encoder over a T5 encoder
with the vectors that sentence-transformers gives.

    pip install torch transformers sentencepiece protobuf sentence-transformers
    python3 scripts/golden_t5.py
"""

import copy
import io
import json
import shutil
from pathlib import Path

import sentence_transformers
import sentencepiece
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers.models.t5.modeling_t5 import T5Attention

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
EXTRA_IDS = 7

# What the tokenizer learns from; uneven, with accents and characters that the rules below rewrite.
TEXTS = [
    "A sidenote is text brought from elsewhere and set beside the line being read.",
    "translate English to German: The house is wonderful, and the moon is far.",
    "What similarity laws must be obeyed when constructing models of heated high speed aircraft?",
    "Zürich is the largest city of Switzerland; naïve café owners know it.",
    "The moon moves around the Earth in about 27 days.",
    "They look things up while they write, and the words that they find stand beside the words that they make.",
]
# What is tokenised: also runs of spaces, tabs, unknown characters, ligatures, and the marker itself.
PROBES = TEXTS + [
    "", " ", "!", "  two  spaces\tand a tab\nand a line ", "東京 and Ωmega", "ﬁnd the ﬂow of Ａ and Ｂ", "▁marker▁",
    "a<b </s> c", "x" * 40, "The <extra_id_0> moves around <extra_id_1>.", "<extra_id_0>", "don't stop—ever… 1,234.5",
]
# Inputs as token ids, uneven; the second is longer than the largest distances.
INPUTS = [[5, 9, 17, 3, 1], [(i * i * 7 + 3 * i) % 90 + 3 for i in range(43)] + [1], [11, 1], [40, 41, 7, 7, 8, 60, 61, 9, 1]]
TARGETS = [[6, 30, 2, 44, 9, 1], [70, 3, 3, 5, 81, 12], [1, 0, 0, 0, 0, 0], [25, 26, 27, 28, 29, 30]]


def spiece() -> bytes:
    """A SentencePiece Unigram model with T5's special tokens and a few normalisation rules (T5's own are NFKC,
    a quarter of a megabyte)."""
    rules = DATA / "models" / "rules.tsv"
    rows = [("ﬁ", "fi"), ("ﬂ", "fl"), ("Ａ", "A"), ("Ｂ", "B"), ("…", "..."), ("\t", " "), ("\n", " ")]
    hexed = lambda text: " ".join(f"{ord(c):X}" for c in text)
    rules.write_text("".join(f"{hexed(a)}\t{hexed(b)}\n" for a, b in rows))
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=out, model_type="unigram", vocab_size=104, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, normalization_rule_tsv=str(rules), character_coverage=1.0, minloglevel=2,
    )
    rules.unlink()
    return out.getvalue()


def shake(network: torch.nn.Module, seed: int) -> None:
    """Moves every weight: norms start as ones, which would hide what is wrong with them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "layer_norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif "shared" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            elif "lm_head" in name:
                parameter.copy_(0.4 * torch.randn_like(parameter))
            elif ".q." in name or ".k." in name:  # scores are not divided by anything: they soon grow too large
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))


def generate(network, row: list[int], **options) -> tuple[list[int], float]:
    """A greedy generation of 14 tokens at most, and by how much its tokens led at least. (Without a cache:
    transformers 5.24 fails with one where the decoder has more layers than the encoder.)"""
    out = network.generate(input_ids=torch.tensor([row]), do_sample=False, use_cache=False, max_new_tokens=14,
                           output_scores=True, return_dict_in_generate=True)
    lead = min(float(-scores[0].topk(2).values.diff()) for scores in out.scores)
    return out.sequences[0].tolist(), lead


def forward(network: torch.nn.Module):
    """All inputs side by side, and their targets."""
    width = max(map(len, INPUTS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in INPUTS])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in INPUTS])
    with torch.no_grad():
        return network(input_ids=ids, attention_mask=mask, labels=torch.tensor(TARGETS))


def settle(network: torch.nn.Module) -> None:
    """Looks for weights with which texts differ, some end and some do not, and no choice is close."""
    torch.set_num_threads(1)
    start = copy.deepcopy(network.state_dict())
    for seed in range(1000):
        network.load_state_dict(start)
        shake(network, seed)
        single, double = forward(network), forward(copy.deepcopy(network).double())
        parts = ("logits", "encoder_last_hidden_state")
        if max((single[part] - double[part]).abs().max() for part in parts) > 2e-5:
            continue  # a network that blows rounding errors up tells nothing
        written, leads = zip(*(generate(network, row) for row in INPUTS))
        lengths = {len(row) for row in written}
        varied = all(len(set(row)) > 2 for row in written if len(row) == 15)
        if len(set(map(tuple, written))) == len(INPUTS) and 1 < len(lengths) and 15 in lengths and varied and min(leads) > 4e-3:
            print("seed", seed, "lead", min(leads), "lengths", [len(row) for row in written])
            return
    raise SystemExit("no seed will do")


def rounded(tensor: torch.Tensor) -> list:
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda x: round(float(x), 6))


def golden(folder: Path, tokenizer) -> None:
    """Reads the folder as anybody would and writes down what comes out."""
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = network.config
    distances = torch.arange(-300, 301)
    bucket = lambda both: T5Attention._relative_position_bucket(
        distances, both, config.relative_attention_num_buckets, config.relative_attention_max_distance).tolist()
    out = forward(copy.deepcopy(network).double())
    states = out.encoder_last_hidden_state
    prompts = TEXTS[1:4]
    texts = []
    for prompt in prompts:
        row, _ = generate(network, tokenizer(prompt).input_ids)
        texts.append({"prompt": prompt, "ids": row, "text": tokenizer.decode(row, skip_special_tokens=True)})
    value = {
        "made_with": {p.__name__: str(p.__version__) for p in (transformers, torch, sentencepiece)},
        "inputs": INPUTS,
        "targets": TARGETS,
        "loss": round(float(out.loss), 6),
        "states": [rounded(states[i, : len(row)]) for i, row in enumerate(INPUTS)],
        "logits": rounded(out.logits),
        "generated": [generate(network, row)[0] for row in INPUTS],
        "from_text": texts,
        "buckets": {"bidirectional": bucket(True), "causal": bucket(False)},
        "tokens": [{"text": text, "ids": tokenizer(text).input_ids, "back": tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)} for text in PROBES],
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in value.items())
    (folder / "golden.json").write_text("{" + lines + "}\n")
    print(folder.name, "loss", value["loss"], [text["text"] for text in texts])


def checkpoint(name: str, config, head: bool, dtype: torch.dtype = torch.float32) -> None:
    folder = DATA / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = transformers.MT5ForConditionalGeneration if config.model_type == "mt5" else transformers.T5ForConditionalGeneration
    network = kind(config)
    if head:  # its own matrix, as the checkpoints of v1.1 and mT5 have it
        network.lm_head.weight = torch.nn.Parameter(torch.zeros_like(network.lm_head.weight))
        network.all_tied_weights_keys.pop("lm_head.weight", None)
    network.eval().to(dtype).float()
    settle(network)
    network.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "spiece.model").write_bytes(spiece())
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=EXTRA_IDS)
    if name == "t5_v1_1":  # one of them has the old file alone
        (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": EXTRA_IDS}) + "\n")
    else:
        tokenizer.save_pretrained(folder)
        if name != "t5_v1_0":
            (folder / "spiece.model").unlink()
    # The configurations that people have were written before transformers 5.
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if name == "t5_v1_1":
        written.pop("scale_decoder_outputs", None)
        written["tie_word_embeddings"] = False
    path.write_text(json.dumps(written, indent=2) + "\n")
    golden(folder, tokenizer)


def sentence_encoder() -> None:
    """A sentence-transformers folder: the encoder half, pooled by the mean, then a Dense module (as sentence-t5)."""
    folder = DATA / "encoder" / "t5_dense"
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    config = transformers.T5Config(
        vocab_size=115, d_model=22, d_kv=6, d_ff=31, num_layers=2, num_heads=3, relative_attention_num_buckets=12,
        relative_attention_max_distance=20, decoder_start_token_id=0)
    network = transformers.T5EncoderModel(config).eval()
    shake(network, 5)
    network.save_pretrained(source)
    (source / "spiece.model").write_bytes(spiece())
    transformers.T5Tokenizer.from_pretrained(source, extra_ids=EXTRA_IDS).save_pretrained(source)
    torch.manual_seed(6)
    transformer = modules.Transformer(str(source), max_seq_length=40)
    dense = modules.Dense(22, 13, bias=False, activation_function=torch.nn.Identity())
    parts = [transformer, modules.Pooling(22, pooling_mode="mean"), dense, modules.Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(source)
    shutil.rmtree(folder / "3_Normalize", ignore_errors=True)  # holds nothing that is read
    (folder / "spiece.model").unlink(missing_ok=True)
    vectors = SentenceTransformer(str(folder), device="cpu").encode(PROBES, batch_size=4)
    rows = ",\n".join(json.dumps({"text": text, "vector": [round(float(x), 7) for x in row]}, ensure_ascii=False)
                      for text, row in zip(PROBES, vectors))
    made_with = {p.__name__: str(p.__version__) for p in (sentence_transformers, transformers, torch)}
    (folder / "golden.json").write_text(f'{{"made_with": {json.dumps(made_with)},\n"rows": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    common = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, dropout_rate=0.1)
    checkpoint("t5_v1_0", transformers.T5Config(
        vocab_size=123, d_model=18, d_kv=5, d_ff=31, num_layers=2, num_decoder_layers=3, num_heads=3, **common), False)
    checkpoint("t5_v1_1", transformers.T5Config(
        vocab_size=120, d_model=26, d_kv=6, d_ff=33, num_layers=2, num_heads=5, relative_attention_num_buckets=10,
        relative_attention_max_distance=21, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **common),
        True, torch.float16)
    checkpoint("t5_mt5", transformers.MT5Config(
        vocab_size=131, d_model=16, d_kv=9, d_ff=29, num_layers=3, num_decoder_layers=1, num_heads=3,
        relative_attention_num_buckets=16, relative_attention_max_distance=40, **common), True)
    sentence_encoder()
