"""Writes texts and the ids that a GGUF file's tokenizer gives them, by transformers and llama.cpp.

The texts are windows of the files given (and a few of odd letters); both programs must agree on
each, or it is left out and counted. transformers does not split digits where the file says
"smollm", which llama.cpp and the model's own tokenizer.json do: that is added.

    python scripts/golden_tokens.py MODEL.gguf OUT.json COUNT FILE...     # transformers, llama_cpp
"""

import json
import pathlib
import random
import sys

import llama_cpp
import transformers
from tokenizers import pre_tokenizers

model, out, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tokenizer = transformers.AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
peer = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
if peer.metadata.get("tokenizer.ggml.pre") == "smollm":
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])

rng = random.Random(0)
texts = [
    "", " ", "  ", "\n", "\n\n\n  x", "\t\ttabs", "naïve façade 東京タワー 🦀🏳️‍🌈", "１２３ ١٢٣ ⅫⅣ ½ ² 12,345.678e-9",
    "it's they'll I'D we'VE", "e\u0301 é ﬁ", "a\u00a0b\u3000c\u200bd", "x" * 70, "1234567890" * 3, "нет, это не так",
    "ไม่ใช่", "हिन्दी में", "\r\nwindows\r\n", "<b>&amp;</b> {{x}} $\\alpha$", "\u0000\u0001\u007f", "🇩🇪👩‍👩‍👧",
]
files = [pathlib.Path(name).read_text(errors="replace") for name in sys.argv[4:]]
while len(texts) < count:
    content = rng.choice(files)
    at = rng.randrange(max(len(content) - 10, 1))
    texts.append(content[at:at + rng.choice([20, 60, 200, 400])])
kept, apart = [], []
for text in texts:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = peer.tokenize(text.encode(), add_bos=False, special=False)
    if ids == theirs:
        kept.append({"text": text, "ids": ids})
    else:
        apart.append(text)
print(f"{len(kept)} texts kept; on {len(apart)} transformers and llama.cpp differ: {apart[:5]}")
pathlib.Path(out).write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in kept) + "\n]\n")
