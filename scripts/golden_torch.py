"""Writes tests/data/models/torch: small files of torch.save, and the same tensors as safetensors.

    python scripts/golden_torch.py tests/data/models/torch      # torch, safetensors
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
whole = torch.randn(6, 4)
tensors = {
    "plain": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 3, 2).bfloat16(),
    "parameter": torch.nn.Parameter(torch.randn(4)),
    "rows": whole[2:5],
    "turned": whole.t(),
    "scalar": torch.tensor(2.5),
    "ids": torch.arange(5),
}
torch.save(tensors, out / "plain.bin")
module = torch.nn.Linear(3, 2)
torch.save({"epoch": 3, "state_dict": module.state_dict(), "lr": [0.1, 0.2]}, out / "wrapped.pth")
torch.save({"strided": torch.randn(4, 4)[:, ::2]}, out / "strided.bin")
torch.save({"a": torch.randn(2, 2)}, out / "legacy.bin", _use_new_zipfile_serialization=False)
kept = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
save_file(kept | {f"state.{k}": v for k, v in module.state_dict().items()}, out / "expected.safetensors")
