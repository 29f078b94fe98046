#!/usr/bin/env python3
"""Bars for kernel benchmarks: what PyTorch carries, on the same shapes.

    python bars.py [--out bars.jsonl] [--models 0.6b,1.7b,4b,8b]
                   [--rows 2176,4352] [--lengths 300,512,1024]
    python bars.py --table bars.jsonl

torch.mm is cuBLAS, alone and with two more products for LoRA; attention is
aten's flash attention over rows of any length, and cuDNN's; the others are the
operators that a model of transformers is made of. Random data, never zeros:
the clocks of a GPU depend on the bits. One JSON line for each bar: {"bar",
"shape", "ms", "tflops" or "gb_per_s", "gpu"}, by the operations and bytes that
`benches/kernels` count. `ms` is the median of 21 samples of 5 calls by events.
The calls are a CUDA graph, so that Python and launches take no part in it.
`--table` prints such a file as Markdown; that takes no torch.
"""
import argparse
import json
import statistics
import sys

from report import bar_table
from workloads import SHAPES, VOCABULARY

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--out")
parser.add_argument("--models", default="0.6b,1.7b,4b,8b")
parser.add_argument("--rows", default="2176,4352")
parser.add_argument("--lengths", default="300,512,1024")
parser.add_argument("--table", help="only print this file as a table")
args = parser.parse_args()
if args.table:
    with open(args.table) as lines:
        print(bar_table([json.loads(line) for line in lines]))
    sys.exit()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

if not torch.cuda.is_available():
    print(json.dumps({"error": "torch sees no GPU"}))
    sys.exit(1)
GPU = torch.cuda.get_device_name()
CALLS = 5
LORA_R = 16
HEAD_DIM = 128
aten = torch.ops.aten
out = open(args.out, "w") if args.out else None
torch.manual_seed(0)


def measure(call):
    """Median milliseconds of a call."""
    # What is only done once must not be recorded, and not be done on the
    # stream of others.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()

    def sample():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / CALLS
    sample()
    return statistics.median(sample() for _ in range(21))


def bar(name, shape, call, flops=None, size=None):
    """Measures a call with so many operations, or so many bytes."""
    line = {"bar": name, "shape": shape, "gpu": GPU}
    try:
        line["ms"] = measure(call)
        if flops:
            line["tflops"] = flops / line["ms"] / 1e9
        if size:
            line["gb_per_s"] = size / line["ms"] / 1e6
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        line["error"] = str(error).split("\n")[0]
    text = json.dumps(line)
    print(text, flush=True)
    if out:
        out.write(text + "\n")
        out.flush()


def normal(*shape, size=1.0):
    return size * torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def both_ways(name, shape, forward, inputs, gradients, sizes):
    """Forward alone, and with its way back by autograd.

    `sizes`: bytes of forward, and of both.
    """
    def with_backward():
        torch.autograd.grad(forward(*leaves), leaves, gradients)
    leaves = [x.detach().requires_grad_() for x in inputs]
    bar(f"{name} forward", shape, lambda: forward(*inputs), size=sizes[0])
    bar(f"{name} forward + backward", shape, with_backward, size=sizes[1])


def products(model, rows):
    """y = x W^T and dx = dy W of the groups that share their input."""
    linears = SHAPES[model].linears()
    for group in ("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj",
                  "down_proj"):
        width = linears[group.split()[0]][0]
        outputs = [linears[name][1] for name in group.split()]
        features = sum(outputs)
        x, w = normal(rows, width), normal(features, width, size=0.02)
        dy = normal(rows, features)
        flops = 2 * rows * width * features
        shape = {"model": model, "group": group, "rows": rows,
                 "in": width, "out": features}
        bar("torch.mm forward", shape, lambda: x @ w.t(), flops)
        bar("torch.mm dx", shape, lambda: dy @ w, flops)

        # As libraries without a fused kernel do it, layer by layer.
        layers = [(w_, dy_.contiguous(), normal(LORA_R, width, size=0.02),
                   normal(w_.shape[0], LORA_R, size=0.02))
                  for w_, dy_ in zip(w.split(outputs), dy.split(outputs, 1))]
        narrow = 2 * rows * LORA_R * (width * len(outputs) + features)

        def forward():
            for w_, _, a, b in layers:
                torch.addmm(x @ w_.t(), x @ a.t(), b.t())

        def backward():
            for (w_, dy_, a, b), xa in zip(layers, xas):
                dxa = dy_ @ b
                torch.addmm(dy_ @ w_, dxa, a)
                dxa.t() @ x
                dy_.t() @ xa
        xas = [x @ a.t() for _, _, a, _ in layers]
        bar("torch.mm, mm, addmm (LoRA) forward", shape, forward,
            flops + narrow)
        bar("torch.mm, mm, addmm (LoRA) backward", shape, backward,
            flops + 2 * narrow)


def element_wise(model, rows):
    """What lies between the products; bytes of every tensor once."""
    of = SHAPES[model]
    hidden, wide = of.hidden, of.intermediate
    shape = {"model": model, "rows": rows}

    weight = normal(hidden)

    def norm(x, residual):
        s = x + residual
        return F.rms_norm(s, (hidden,), weight, 1e-6), s
    tensor = 2 * rows * hidden
    both_ways("rms_norm with residual", shape, norm,
              [normal(rows, hidden), normal(rows, hidden)],
              [normal(rows, hidden), normal(rows, hidden)],
              [4 * tensor, 9 * tensor])

    tensor = 2 * rows * wide
    both_ways("swiglu", shape, lambda gate, up: F.silu(gate) * up,
              [normal(rows, wide), normal(rows, wide)], [normal(rows, wide)],
              [3 * tensor, 9 * tensor])

    heads = [of.heads, of.kv_heads]
    weight_ = normal(HEAD_DIM)
    turn = torch.arange(rows, device="cuda")[:, None, None] % 512 \
        * 1e6 ** -(torch.arange(HEAD_DIM, device="cuda") % 64 / 64)
    cos, sin = turn.cos().bfloat16(), turn.sin().bfloat16()

    def rotate(*tensors):
        results = []
        for x in tensors:
            x = F.rms_norm(x, (HEAD_DIM,), weight_, 1e-6)
            a, b = x.chunk(2, -1)
            results.append(x * cos + torch.cat((-b, a), -1) * sin)
        return results
    tensor = 2 * rows * sum(heads) * HEAD_DIM
    both_ways("qk-norm and rope", shape, rotate,
              [normal(rows, n, HEAD_DIM) for n in heads],
              [normal(rows, n, HEAD_DIM) for n in heads],
              [2 * tensor, 5 * tensor])

    table = normal(50_000, hidden)
    ids = torch.arange(rows, device="cuda") * 7919 % 50_000
    bar("embedding", shape, lambda: F.embedding(ids, table),
        size=4 * rows * hidden)


def head(model, rows):
    """Linear layer and loss of supervised rows, by way of all logits."""
    hidden = SHAPES[model].hidden
    w = normal(VOCABULARY, hidden, size=0.02)
    x = normal(rows, hidden)
    leaf = x.detach().requires_grad_()
    targets = torch.arange(rows, device="cuda") * 97 % VOCABULARY
    shape = {"model": model, "rows": rows}
    flops = 2 * rows * hidden * VOCABULARY

    def loss(x):
        return F.cross_entropy((x @ w.t()).float(), targets)
    bar("linear_cross_entropy scores", shape, lambda: loss(x), flops)
    bar("linear_cross_entropy gradient", shape,
        lambda: torch.autograd.grad(loss(leaf), leaf), 2 * flops)


def adamw(model):
    """Clipping and the fused update of all adapters, in f32."""
    of = SHAPES[model]
    sizes = [side for _ in range(of.layers)
             for sides in of.linears().values() for side in sides]
    params = [torch.nn.Parameter(torch.randn(LORA_R, n, device="cuda"))
              for n in sizes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0,
                                  fused=True, capturable=True)

    def step():
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    elements = LORA_R * sum(sizes)
    bar("clip_grad_norm_, fused AdamW", {"model": model, "elements": elements},
        step, size=38 * elements)


def attention(rows, length):
    """Causal, rows of one length, by the kernels that PyTorch carries."""
    for heads, kv_heads, models in ((16, 8, "0.6b, 1.7b"), (32, 8, "4b, 8b")):
        if not set(models.split(", ")) & set(args.models.split(",")):
            continue
        count = max(1, rows // length)
        total = count * length
        starts = torch.arange(0, total + 1, length, device="cuda",
                              dtype=torch.int32)
        q, dout = (normal(total, heads, HEAD_DIM) for _ in range(2))
        k, v = (normal(total, kv_heads, HEAD_DIM) for _ in range(2))
        shape = {"models": models, "heads": heads, "kv_heads": kv_heads,
                 "rows": total, "length": length}
        # Forward: 2 products over half of the square; backward: 5.
        flops = 2 * total * length * heads * HEAD_DIM

        def cudnn(*tensors):
            q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2)
                       for x in tensors)
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=True)

        def cudnn_both():
            o = cudnn(*leaves)
            torch.autograd.grad(o, leaves, dout.unflatten(
                0, (count, length)).transpose(1, 2))
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        bar("cuDNN attention forward", shape, lambda: cudnn(q, k, v), flops)
        bar("cuDNN attention forward + backward", shape, cudnn_both,
            7 * flops // 2)

        def forward():
            return aten._flash_attention_forward(
                q, k, v, starts, starts, length, length, 0.0, True, False)
        bar("flash attention forward", shape, forward, flops)
        try:
            o, lse, seed, offset, _ = forward()
        except (RuntimeError, AttributeError, TypeError, ValueError):
            continue  # the bar above has the reason
        bar("flash attention backward", shape,
            lambda: aten._flash_attention_backward(
                dout, q, k, v, o, lse, starts, starts, length, length, 0.0,
                True, seed, offset), 5 * flops // 2)


for rows in map(int, args.rows.split(",")):
    for length in map(int, args.lengths.split(",")):
        attention(rows, length)
    for model in args.models.split(","):
        products(model, rows)
        element_wise(model, rows)
for model in args.models.split(","):
    for rows in (64, 512, 2176):
        head(model, rows)
    adamw(model)
