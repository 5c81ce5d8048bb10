#!/usr/bin/env python3
"""Makes tests/data/adapters/BASE_METHOD: adapters that PEFT saves over the small models of tests/data/models, with
values moved off where they start, and golden.safetensors, the logits that PEFT and transformers compute in f32.

    pip install torch transformers peft
    python3 scripts/golden_adapter.py

With folders as arguments it makes nothing: of each three it loads the adapter in the second over the model in the
first, prints the largest difference between its logits and those of golden.safetensors in the third, and fails above
1e-4 or where PEFT misses a tensor:

    python3 scripts/golden_adapter.py BASE ADAPTER GOLDEN ...
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
PROMPTS = [[5, 90, 17, 3, 3, 61, 8], [(7 * i * i + 11 * i + 2) % 97 for i in range(19)]]
TARGET = [6, 30, 2, 44, 9, 1]
VIRTUAL = 3

METHODS = {
    "lora": lambda base, task: peft.LoraConfig(
        task_type=task, r=3, lora_alpha=5, use_rslora=base == "gpt2", fan_in_fan_out=base == "gpt2",
        target_modules=LORA.get(base)),
    "ia3": lambda base, task: peft.IA3Config(task_type=task),
    "bitfit": lambda base, task: peft.LoraConfig(task_type=task, r=1, lora_alpha=1, bias="all", fan_in_fan_out=base == "gpt2"),
    "prompt": lambda base, task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
    "prefix": lambda base, task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL, **PREFIX.get(base, {})),
}
LORA = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "gate_proj"], "t5_v1_0": ["q", "v", "wi", "wo"]}
# PEFT takes an encoder's blocks and a model's width where nothing is said.
PREFIX = {
    "t5_v1_0": {"num_layers": 3, "token_dim": 15, "num_attention_heads": 3, "num_transformer_submodules": 2},
    "t5_v1_1": {"num_layers": 2, "token_dim": 30, "num_attention_heads": 5, "num_transformer_submodules": 2},
}
MADE = {
    "llama": ["lora", "ia3", "bitfit", "prompt"], "gpt2": ["lora", "ia3", "bitfit", "prompt", "prefix"],
    "bloom": ["lora", "ia3"], "opt": ["bitfit", "prompt"], "stablelm": ["prefix"],
    "t5_v1_0": ["lora", "ia3", "prefix"], "t5_v1_1": ["lora", "ia3", "prompt", "prefix"],
}


def network(folder: Path):
    t5 = json.loads((folder / "config.json").read_text())["model_type"] in ("t5", "mt5")
    kind = transformers.AutoModelForSeq2SeqLM if t5 else transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), t5


def logits(model, t5: bool) -> dict[str, torch.Tensor]:
    out = {}
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            row = torch.tensor([prompt])
            if t5:
                decoder = torch.tensor([[0] + TARGET[:-1]])
                found = model(input_ids=row, attention_mask=torch.ones_like(row), decoder_input_ids=decoder).logits
            else:
                found = model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            # Those of the text, without what was before it.
            out[str(i)] = found[0, -(len(TARGET) if t5 else len(prompt)):].contiguous()
    return out


def make(base: str, method: str) -> None:
    folder = DATA / "adapters" / f"{base}_{method}"
    shutil.rmtree(folder, ignore_errors=True)
    model, t5 = network(DATA / "models" / base)
    config = METHODS[method](base, "SEQ_2_SEQ_LM" if t5 else "CAUSAL_LM")
    torch.manual_seed(len(base) * 31 + len(method))
    adapted = peft.get_peft_model(model, config)
    before = logits(network(DATA / "models" / base)[0], t5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and not (method == "bitfit" and "lora_" in name):
                parameter.add_((0.15 if method == "lora" else 0.3) * torch.randn_like(parameter))
    adapted.eval()
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    again = peft.PeftModel.from_pretrained(network(DATA / "models" / base)[0], folder).eval()
    golden = logits(again, t5)
    assert max((golden[i] - before[i]).abs().max() for i in golden) > 1e-2, "the adapter does nothing"
    save_file(golden, folder / "golden.safetensors")
    print(base, method, sorted(load_file(folder / "adapter_model.safetensors"))[:2])


def check(base: Path, adapter: Path, golden: Path) -> None:
    model, t5 = network(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A tensor that is missing or that nothing asked for is only warned about.
        warnings.filterwarnings("error", message=".*(issing|nexpected|fan_in).*")
        adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    right, found = load_file(golden / "golden.safetensors"), logits(adapted, t5)
    far = max(float((found[i] - right[i]).abs().max()) for i in right)
    print(adapter, far)
    if far > 1e-4:
        raise SystemExit(1)


if len(sys.argv) > 1:
    for at in range(1, len(sys.argv), 3):
        check(*map(Path, sys.argv[at:at + 3]))
else:
    for base, methods in MADE.items():
        for method in methods:
            make(base, method)
