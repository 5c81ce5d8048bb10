"""PyTorch on a GPU beside our kernels: the same operations, sizes and names as kernels/benches/gpu.

    gpu.py OURS.json FOLDER

OURS.json is what that benchmark wrote a moment ago on the same machine; train_peer, generate_peer and train_torch.py lie
beside this file. Writes gpu-kernels.json, gpu-train.json and gpu-topk.json into FOLDER: milliseconds of ours and of PyTorch (eager, torch.compile, its scaled_dot_product_attention),
and which part of the device's peaks, measured here too, ours reaches. A peer that fails is named with its error.
"""

import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

BATCH, TOKENS, WIDTH, HEADS, DIM = 8, 2048, 1024, 16, 64
GPU = "cuda"


def random(*shape, scale=1.0):
    return ((torch.rand(*shape, device=GPU) * 2 - 1) * scale).to(torch.bfloat16)


def milliseconds(run):
    """The median of five rounds of a twentieth of a second, as ours."""

    def rounds(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / times

    rounds(3)
    times = int(min(max(50 / rounds(2), 1), 1000))
    return sorted(rounds(times) for _ in range(5))[2]


def peaks():
    """Bytes and bf16 operations a second."""
    a, b = random(8192, 8192), random(8192, 8192)
    product = 2 * 8192**3 / milliseconds(lambda: a @ b) * 1e3
    x = torch.empty(1 << 30, dtype=torch.uint8, device=GPU)
    y = torch.empty_like(x)
    return {"bytes": 2 * x.numel() / milliseconds(lambda: y.copy_(x)) * 1e3, "operations": product}


class Peers:
    """Times of PyTorch's modes by our names."""

    def __init__(self):
        self.found = {}

    def one(self, name, mode, run):
        try:
            self.found.setdefault(name, {})[mode] = milliseconds(run)
        except Exception as error:  # a mode that cannot do it is part of the result
            self.found.setdefault(name, {})[mode] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        torch.cuda.empty_cache()

    def forward(self, name, function, *inputs):
        with torch.no_grad():
            self.one(name, "eager", lambda: function(*inputs))
            compiled = torch.compile(function)
            self.one(name, "compile", lambda: compiled(*inputs))

    def backward(self, name, function, *inputs, modes=("eager", "compile")):
        """Backward alone, of a graph that is kept."""
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
        wanted = [x for x in inputs if x.requires_grad]
        for mode in modes:
            try:
                out = (torch.compile(function) if mode == "compile" else function)(*inputs)
                grad = torch.ones_like(out)
            except Exception as error:
                self.found.setdefault(name, {})[mode] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            self.one(name, mode, lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True))


def kernels():
    peers = Peers()
    rows, ffn, vocabulary = BATCH * TOKENS, 2816, 32_000
    x, weight = random(rows, WIDTH), random(WIDTH)
    norm = lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-5)
    peers.forward("rms_norm", norm, x, weight)
    peers.backward("rms_norm backward", norm, x, weight)
    gate, up = random(rows, ffn), random(rows, ffn)
    swiglu = lambda a, b: F.silu(a) * b
    peers.forward("swiglu", swiglu, gate, up)
    peers.backward("swiglu backward", swiglu, gate, up)
    table, ids = random(50_304, WIDTH), torch.randint(0, 50_304, (rows,), device=GPU)
    peers.forward("embedding", lambda t, i: F.embedding(i, t), table, ids)
    variable = torch.nn.Parameter(random(32 << 20).float())
    variable.grad = random(32 << 20).float()
    optimiser = torch.optim.AdamW([variable], fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([variable], 1.0)
        optimiser.step()

    peers.one("adamw", "eager", step)  # in float32, with torch's own fused step
    del variable, optimiser

    w = random(4096, WIDTH, scale=0.05)
    peers.forward("linear", F.linear, x, w)
    peers.backward("linear backward", F.linear, x, w)
    w, targets = random(vocabulary, WIDTH, scale=0.05), torch.randint(0, vocabulary, (rows,), device=GPU)
    loss = lambda x, w: F.cross_entropy(F.linear(x, w).float(), targets, reduction="sum")
    peers.forward("linear_cross_entropy", loss, x, w)
    a, b = x.detach().requires_grad_(), w.detach().requires_grad_()
    both = "linear_cross_entropy forward and backward"
    peers.one(both, "eager", lambda: torch.autograd.grad(loss(a, b), (a, b)))
    compiled = torch.compile(loss)
    peers.one(both, "compile", lambda: torch.autograd.grad(compiled(a, b), (a, b)))
    attention(peers)
    generation(peers)
    return peers.found


def attention(peers):
    q, k, v = (random(BATCH, HEADS, TOKENS, DIM) for _ in range(3))
    place = torch.arange(TOKENS, device=GPU)
    back = place[:, None] - place[None, :]
    window = (back >= 0) & (back < 256)
    bias = torch.zeros(HEADS, TOKENS, TOKENS, device=GPU, dtype=torch.bfloat16)
    sdpa = F.scaled_dot_product_attention
    composed = {
        "attention": lambda s: s,
        "attention, causal": lambda s: s.masked_fill(back < 0, float("-inf")),
        "attention, window of 256": lambda s: s.masked_fill(~window, float("-inf")),
        "attention, bias": lambda s: s + bias,
    }
    direct = {
        "attention": lambda q, k, v: sdpa(q, k, v),
        "attention, causal": lambda q, k, v: sdpa(q, k, v, is_causal=True),
        "attention, window of 256": lambda q, k, v: sdpa(q, k, v, attn_mask=window),
        "attention, bias": lambda q, k, v: sdpa(q, k, v, attn_mask=bias),
    }
    for name, mask in composed.items():
        plain = lambda q, k, v: mask(q @ k.transpose(-1, -2) * DIM**-0.5).softmax(-1) @ v
        peers.forward(name, plain, q, k, v)
        peers.backward(f"{name}, backward", plain, q, k, v)
        with torch.no_grad():
            peers.one(name, "sdpa", lambda: direct[name](q, k, v))
        of_sdpa = Peers()
        of_sdpa.backward(name, direct[name], q, k, v, modes=("eager",))
        peers.found.setdefault(f"{name}, backward", {})["sdpa"] = of_sdpa.found[name]["eager"]

    # RETRO's, as retro-pytorch does it: pad, cut into chunks, attend, put back.
    m, keys, chunks = 64, 256, TOKENS // 64
    k, v = (random(BATCH * chunks, HEADS, keys, DIM) for _ in range(2))

    def retro(q, k, v):
        q = F.pad(q[:, :, m - 1 :], (0, 0, 0, m - 1))
        q = q.reshape(BATCH, HEADS, chunks, m, DIM).transpose(1, 2).reshape(BATCH * chunks, HEADS, m, DIM)
        out = sdpa(q, k, v).reshape(BATCH, chunks, HEADS, m, DIM).transpose(1, 2)
        return F.pad(out.reshape(BATCH, HEADS, TOKENS, DIM), (0, 0, m - 1, 0))[:, :, :TOKENS]

    peers.forward("chunked_cross_attention", retro, q, k, v)
    peers.backward("chunked_cross_attention, backward", retro, q, k, v)


def generation(peers):
    k = random(8, 8, 4096, 128)
    q = random(8, 32, 1, 128)
    with torch.no_grad():
        peers.one("decode attention", "sdpa", lambda: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    w = random(4096, 4096)
    for rows in (1, 512):
        x = random(rows, 4096)
        for kind in ("q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k"):  # torch has no such weights: its product in bf16
            peers.forward(f"{kind} linear, {rows} rows", F.linear, x, w)


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = -(-(width * 8 // 3) // 64) * 64
        linear = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.width, self.heads = width, width // DIM
        self.norm_1, self.norm_2 = torch.nn.RMSNorm(width, 1e-5), torch.nn.RMSNorm(width, 1e-5)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.gate, self.up, self.down = linear(width, inner), linear(width, inner), linear(inner, width)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, self.heads, DIM).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(self.width, -1))

        def turn(y):
            left, right = y.chunk(2, -1)
            return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

        out = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.out(out.transpose(1, 2).reshape(b, t, self.width))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(torch.nn.Module):
    def __init__(self, width, layers, tokens, vocabulary=32_000):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, width)
        self.blocks = torch.nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = torch.nn.RMSNorm(width, 1e-5)
        self.output = torch.nn.Linear(width, vocabulary, bias=False)
        angles = torch.arange(tokens)[:, None] * 10_000 ** (-torch.arange(DIM // 2) / (DIM // 2))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        x = self.table(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.output(self.norm(x)).float().flatten(0, 1), targets.flatten())


def training():
    """Weights in bf16 and torch's fused AdamW on them; ours keeps a copy in float32 too, which is more work."""
    peers = Peers()
    batch, tokens = 4, 512
    for width, layers in ((512, 8), (1024, 24)):
        name = f"decoder d={width} L={layers}, step of {batch * tokens} tokens"
        for mode in ("eager", "compile"):
            model = Decoder(width, layers, tokens).to(GPU, torch.bfloat16)
            optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
            ids = torch.randint(0, 32_000, (batch, tokens), device=GPU)
            forward = torch.compile(model) if mode == "compile" else model

            def step():
                forward(ids, ids.roll(-1, 1)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)

            peers.one(name, mode, step)
            del model, optimiser, forward
    return peers.found


HERE = pathlib.Path(__file__).resolve().parent


def answers(command, lines):
    """What a peer of examples/ answers to these lines, on the GPU."""
    done = subprocess.run(command, cwd=HERE, input="\n".join(lines), text=True, capture_output=True,
                          env=os.environ | {"SIDENOTE_DEVICE": "cuda"}, timeout=1800)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no error was written"])[-1])
    return [json.loads(line) for line in done.stdout.splitlines()]


def models():
    """Whole steps of sidenote's own models through candle's graph, RETRO too, beside PyTorch's decoder and retro-pytorch."""
    rows = []
    for kind in ("decoder", "retro"):
        for width, layers in ((512, 8), (1024, 24)):
            arguments = [kind, str(width), str(layers), "4"]
            row = {"name": f"train_peer {kind} d={width} L={layers}, step of 2048 tokens", "torch_ms": {}}
            commands = {"ours": ["./train_peer", *arguments]}
            for mode in ("eager", "compile"):
                commands[mode] = [sys.executable, "train_torch.py", *arguments, mode]
            for name, command in commands.items():
                try:
                    # The first steps make room and compile.
                    _, timed = answers(command, ["5", "20"])
                    value = statistics.median(timed["seconds"]) * 1e3
                except Exception as error:  # a peer that fails is part of the result
                    value = f"{type(error).__name__}: {error}"
                if name == "ours":
                    row["ms"] = value
                else:
                    row["torch_ms"][name] = value
            rows.append(row)
    return rows + written()


def written():
    """Generation with the checkpoint that MODEL names: a prompt of 128 tokens and 64 more, one text and eight."""
    name = os.environ.get("MODEL")
    if not name:
        return []
    rows = []
    for batch in (1, 8):
        row = {"name": f"generate_peer, {batch} texts, 64 tokens after 128", "model": name, "torch_ms": {}}
        try:
            row["ms"] = answers(["./generate_peer", name], [f"{batch} 128 64"] * 2)[1]["seconds"] * 1e3 / 64
        except Exception as error:
            row["ms"] = f"{type(error).__name__}: {error}"
        try:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(GPU)
            ids = torch.randint(100, model.config.vocab_size - 100, (batch, 128), device=GPU)

            def write():
                model.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False)

            with torch.no_grad():
                row["torch_ms"]["transformers"] = milliseconds(write) / 64
        except Exception as error:
            row["torch_ms"]["transformers"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows


def searches(ours):
    """All scores and torch.topk, a million rows at a time. The codes' peer is the exact search."""
    peers = Peers()
    for name in ours:
        words = name.removeprefix("RaBitQ ").split()
        k, rows, count = int(words[1]), int(words[3]), int(words[5])
        vectors, queries = random(rows, 384), random(count, 384)

        def search():
            best, places = [], []
            for first in range(0, rows, 1 << 20):
                some = torch.topk(queries @ vectors[first : first + (1 << 20)].T, min(k, rows - first), dim=1)
                best.append(some.values)
                places.append(some.indices + first)
            final = torch.topk(torch.cat(best, 1), k, dim=1)
            return torch.cat(places, 1).gather(1, final.indices)

        with torch.no_grad():
            peers.one(name, "eager", search)
        del vectors
    return peers.found


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ours = json.loads(pathlib.Path(sys.argv[1]).read_text())
    head = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "peaks": peaks(),
    }
    if ours["device"] != head["device"]:
        sys.exit(f"ours ran on {ours['device']}, torch runs on {head['device']}")
    found = {"kernels": kernels(), "train": training(), "topk": searches([r["name"] for r in ours["topk"]])}
    for part, of_torch in found.items():
        rows = []
        for result in ours[part]:
            seconds = result["ms"] / 1e3
            share = {
                "of_bandwidth": result["bytes"] / seconds / head["peaks"]["bytes"],
                "of_operations": result["operations"] / seconds / head["peaks"]["operations"],
            }
            rows.append(result | share | {"torch_ms": of_torch.get(result["name"], {})})
        if part == "train":
            rows += models()
        to = pathlib.Path(sys.argv[2]) / f"gpu-{part}.json"
        to.write_text(json.dumps(head | {"results": rows}, indent=1) + "\n")
        print(to)


main()
