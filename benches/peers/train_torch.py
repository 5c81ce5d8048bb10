"""PyTorch's side of train.py: the same models on the same tokens, as many steps at a time as standard input asks for.

    python train_torch.py decoder|retro WIDTH LAYERS BATCH eager|compile [WEIGHTS.safetensors]

The protocol is that of examples/train_peer.rs, and so are SIDENOTE_DEVICE=cuda, where all is in bf16, and
SIDENOTE_PRECISION=bf16, which is PyTorch's automatic mixed precision here.
"""

import json
import os
import sys
import time

import numpy
import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, TOKENS, CHUNK, NEIGHBOURS = 32_768, 512, 64, 2
NEIGHBOURS_FROM = 1 << 40
HEADS = 8
DEVICE = os.environ.get("SIDENOTE_DEVICE", "cpu")


def tokens(start, shape):
    """The tokens of examples/train_peer.rs (splitmix64)."""
    n = int(numpy.prod(shape))
    i = numpy.arange(start, start + n, dtype=numpy.uint64) + numpy.uint64(1)
    z = i * numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    z = 1 + (z ^ (z >> numpy.uint64(31))) % numpy.uint64(VOCABULARY - 1)
    return torch.from_numpy(z.astype(numpy.int64)).reshape(shape).to(DEVICE)


class Block(nn.Module):
    """A block of the Llama family, as fast as PyTorch's own operations make it."""

    def __init__(self, width, inner, layers):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, h, cos, sin):
        batch, length, width = h.shape
        x = self.input_layernorm(h)
        q, k, v = (
            layer(x).view(batch, length, HEADS, width // HEADS).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        h = h + self.o_proj(out.transpose(1, 2).reshape(batch, length, width))
        x = self.post_attention_layernorm(h)
        return h + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotated(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Decoder(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        inner = -(-(width * 8 // 3) // 8) * 8
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width, inner, layers) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        half = width // HEADS // 2
        angles = torch.outer(torch.arange(TOKENS).float(), 1e4 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, inputs, targets):
        h = self.embed_tokens(inputs)
        for layer in self.layers:
            h = layer(h, self.cos, self.sin)
        logits = F.linear(self.norm(h), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def read(self, path):
        from safetensors.torch import load_file

        names = {name.replace("self_attn.", "").replace("mlp.", "").removeprefix("model."): tensor
                 for name, tensor in load_file(path).items()}
        self.load_state_dict(names)


class Retro(nn.Module):
    """retro-pytorch's RETRO with its own loss."""

    def __init__(self, width, layers):
        super().__init__()
        import types

        # Its __init__ imports the index libraries of its retrieval part, which nothing here needs.
        for name in ("faiss", "autofaiss"):
            sys.modules.setdefault(name, types.ModuleType(name)).build_index = None
        from retro_pytorch import RETRO

        self.retro = RETRO(
            num_tokens=VOCABULARY,
            max_seq_len=TOKENS,
            chunk_size=CHUNK,
            enc_dim=width,
            enc_depth=2,
            enc_cross_attn_layers=(1,),
            dec_dim=width,
            dec_depth=layers,
            dec_cross_attn_layers=((layers + 1) // 2,) if layers < 6 else tuple(range(6, layers + 1, 3)),
            heads=HEADS,
            dim_head=width // HEADS,
        )

    def forward(self, text, retrieved):
        return self.retro(text, retrieved=retrieved, return_loss=True)


def main():
    kind, width, layers, batch, mode, *file = sys.argv[1:]
    width, layers, batch = int(width), int(layers), int(batch)
    torch.manual_seed(0)
    model = Decoder(width, layers) if kind == "decoder" else Retro(width, layers)
    if file:
        model.read(file[0])
    model.to(DEVICE, torch.bfloat16 if DEVICE == "cuda" else torch.float32)
    decays = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if mode == "compile" else model
    mixed = torch.autocast("cpu", dtype=torch.bfloat16, enabled=os.environ.get("SIDENOTE_PRECISION") == "bf16")
    step = 0
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            clock = time.perf_counter()
            text = tokens(step * batch * (TOKENS + 1), (batch, TOKENS + 1))
            with mixed:
                if kind == "decoder":
                    loss = run(text[:, :-1], text[:, 1:])
                else:
                    shape = (batch, TOKENS // CHUNK, NEIGHBOURS, 2 * CHUNK)
                    loss = run(text, tokens(NEIGHBOURS_FROM + step * int(numpy.prod(shape)), shape))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            losses.append(loss.item())
            seconds.append(time.perf_counter() - clock)
        with open("/proc/self/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
