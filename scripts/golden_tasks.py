#!/usr/bin/env python3
"""Makes tests/data/tasks: items of two tasks, and golden.json, the log-probabilities that EleutherAI's
lm-evaluation-harness has for their choices, after the question and after nothing, with the GPT-2 of
tests/data/models; and its acc, acc_norm and acc_mutual_info.

    pip install torch transformers lm_eval
    python3 scripts/golden_tasks.py
"""

import json
import random
from pathlib import Path

import numpy
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def items() -> list[dict]:
    draw = random.Random(7)
    words = [draw.choice("abcdefghijklmnop") + draw.choice("aeiou") + draw.choice("bdglmnrst") for _ in range(40)]
    text = lambda n: " ".join(draw.choice(words) for _ in range(n))
    rows = []
    for i in range(30):
        choices = ["yes", "no", "maybe so"]
        rows.append(dict(input=f"{text(5)}. {text(3)}?", target=choices[i % 3], choices=choices, task="entailed",
                         template=["short", "long"][i // 15]))
    for i in range(30):
        choices = [text(1 + i % 4), text(2 + i % 3)]
        rows.append(dict(input=f"{text(6)} because\n" if i % 2 else text(6), target=choices[i % 2], choices=choices, task="cause"))
    return rows


rows = items()
model = transformers.AutoModelForCausalLM.from_pretrained(DATA / "models" / "gpt2", dtype=torch.float32)
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(DATA / "models" / "tokenizer.json"), eos_token="</s>",
                                                 pad_token="</s>", unk_token="<unk>")
lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, max_length=40)
asks = []
for row in rows:
    for choice in row["choices"]:
        # The harness's target_delimiter, where the question does not end in white space itself.
        between = "" if row["input"][-1].isspace() else " "
        asks += [(row["input"], between + choice), ("", between + choice)]
found = lm.loglikelihood([Instance(request_type="loglikelihood", doc={}, arguments=ask, idx=0) for ask in asks])
found = iter(float(logprob) for logprob, _ in found)
golden = {"logprobs": [], "scores": {}}
right = {}
for row in rows:
    scores = numpy.array([[next(found), next(found)] for _ in row["choices"]])
    lengths = numpy.array([float(len(choice)) for choice in row["choices"]])
    golden["logprobs"].append(scores.round(6).tolist())
    target = row["choices"].index(row["target"])
    of = right.setdefault(row["task"], dict(acc=[], acc_norm=[], acc_mutual_info=[]))
    of["acc"].append(scores[:, 0].argmax() == target)
    of["acc_norm"].append((scores[:, 0] / lengths).argmax() == target)
    of["acc_mutual_info"].append((scores[:, 0] - scores[:, 1]).argmax() == target)
golden["scores"] = {task: {name: float(numpy.mean(all)) for name, all in of.items()} for task, of in right.items()}
folder = DATA / "tasks"
folder.mkdir(exist_ok=True)
(folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(folder / "golden.json").write_text(json.dumps(golden) + "\n")
print(golden["scores"])
