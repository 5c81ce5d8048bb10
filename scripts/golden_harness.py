#!/usr/bin/env python3
"""Makes tests/data/tasks/harness: EleutherAI's lm-evaluation-harness on two of its own tasks, MMLU's global facts after two examples and
SuperGLUE's COPA, with the model of tests/data/models/llama2c, on rows of real data that are written there too.

    pip install torch transformers lm_eval
    sidenote train same.toml                       # see below: the model as a folder of Hugging Face's
    python3 scripts/golden_harness.py same/model MMLU COPA

same.toml takes a step that moves nothing: kind = "tune", base = "tests/data/models/llama2c/stories260K.bin", [tune] data = [any file of
instances], [training] steps = 1, learning_rate = 1e-30. MMLU is a folder with dev/ and test/ (MIT licence), COPA the folder of
SuperGLUE's COPA with val.jsonl (BSD 2-clause).
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import lm_eval
import torch
import transformers
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers.processors import TemplateProcessing

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "tasks" / "harness"
SUBJECT = "global_facts"
ROWS = 24
SHOTS = 2


def main(folder: Path, mmlu: Path, copa: Path) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    files = {}
    for split, rows in [("test", ROWS), ("dev", 5)]:
        with (mmlu / split / f"{SUBJECT}_{split}.csv").open(newline="") as file:
            all = list(csv.reader(file))
        # The texts must be shorter than what the model reads: beyond that the harness cuts where Sidenote keeps the first token.
        kept = [all[0]] + sorted(all[1:], key=lambda row: sum(map(len, row)))[:rows]
        with (OUT / f"{SUBJECT}_{split}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)
        docs = [dict(question=row[0], subject=SUBJECT, choices=row[1:5], answer=int(row[5])) for row in kept[1:]]
        files[split] = scratch / f"{split}.json"
        files[split].write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    val = (copa / "val.jsonl").read_text().splitlines()[:ROWS]
    (OUT / "copa.jsonl").write_text("".join(line + "\n" for line in val))
    files["copa"] = scratch / "copa.json"
    files["copa"].write_text("".join(line + "\n" for line in val))

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>",
                                                     eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, add_bos_token=True,
              max_length=model.config.max_position_embeddings)

    golden = {}
    for name, ours, data, shots in [
        (f"mmlu_{SUBJECT}", SUBJECT, dict(test=str(files["test"]), dev=str(files["dev"])), SHOTS),
        ("copa", "copa", dict(train=str(files["copa"]), validation=str(files["copa"])), 0),
    ]:
        # The harness's own definition of the task, but for where its data lie.
        config = load_yaml(TaskManager().task_index[name].yaml_path, resolve_func=True)
        config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_alias")}
        config |= dict(dataset_path="json", dataset_name=None, dataset_kwargs=dict(data_files=data), num_fewshot=shots)
        found = lm_eval.simple_evaluate(lm, tasks=[ConfigurableTask(config=config)], log_samples=True, bootstrap_iters=0)
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        results = {key.split(",")[0]: value for key, value in found["results"][name].items()}
        scores = {key: results[key] for key in ("acc", "acc_norm") if key in results}
        golden[ours] = dict(scores=scores, logprobs=[[round(float(one[0][0] if isinstance(one[0], (list, tuple)) else one[0]), 6) for one in sample["filtered_resps"]] for sample in samples],
                            first=samples[0]["arguments"])
        longest = max(len(tokenizer(str(sample["arguments"]))["input_ids"]) for sample in samples)
        print(ours, scores, "longest", longest)
    (OUT / "golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
