#!/usr/bin/env python3
"""Makes tests/data/smollm2_golden.json: for some texts, their tokens and, at some positions, the largest logits of
SmolLM2-135M-Instruct as transformers computes them in f32 from the weights of the GGUF file, dequantised.

    pip install torch transformers gguf accelerate
    python3 scripts/golden_smollm2.py FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "The moon moves around the Earth in about 27 days, and the tides of the sea follow it.",
    "def greatest_common_divisor(a, b):\n    while b:\n        a, b = b, a % b\n    return",
    "Zürich – the largest city of Switzerland –",
]
TOP = 10

file = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
).eval()
rows = []
for text in TEXTS:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    positions = sorted({0, 1, len(ids) // 2, len(ids) - 1})
    top = [torch.topk(logits[p], TOP) for p in positions]
    rows.append({
        "text": text,
        "tokens": ids,
        "positions": positions,
        "largest": [{"ids": t.indices.tolist(), "logits": [round(v, 6) for v in t.values.tolist()]} for t in top],
    })
out = Path(__file__).resolve().parent.parent / "tests" / "data" / "smollm2_golden.json"
out.write_text(json.dumps({"made_by": "scripts/golden_smollm2.py", "rows": rows}, ensure_ascii=False, indent=1) + "\n")
print(out, out.stat().st_size)
