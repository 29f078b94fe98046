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
`benches/kernels` count. `ms` is the median of 21 samples of 5 calls or more, by
events. The calls are a CUDA graph, so that Python and launches take no part in
it, and take turns between copies of their tensors that are larger than the L2
cache together: what a call reads was not left there by the one before. The
most telling bars come first.
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
parser.add_argument("--self-test", action="store_true",
                    help="run every bar once on the processor, in f32, tiny")
args = parser.parse_args()
if args.table:
    with open(args.table) as lines:
        print(bar_table([json.loads(line) for line in lines]))
    sys.exit()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

TEST = args.self_test
if not TEST and not torch.cuda.is_available():
    print(json.dumps({"error": "torch sees no GPU"}))
    sys.exit(1)
DEVICE = "cpu" if TEST else "cuda"
GPU = "none" if TEST else torch.cuda.get_device_name()
CALLS = 5
# More than the L2 caches of all GPUs up to now, and how many copies of the
# tensors of a call there are at most.
ROTATED_BYTES = 192 << 20
MOST_COPIES = 48
LORA_R = 16
HEAD_DIM = 128
aten = torch.ops.aten
out = open(args.out, "w") if args.out else None
torch.manual_seed(0)


def measure(make):
    """Median milliseconds of a call; `make` gives one with its own tensors."""
    if TEST:
        make()()
        return 1.0
    before = torch.cuda.memory_allocated()
    calls = [make()]
    size = max(1, torch.cuda.memory_allocated() - before)
    copies = min(MOST_COPIES, -(-ROTATED_BYTES // size))
    calls += [make() for _ in range(copies - 1)]
    # What is only done once must not be recorded, and not be done on the
    # stream of others.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:1] * 2 + calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    turns = -(-CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * turns:
            call()

    def sample():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / (turns * len(calls))
    sample()
    return statistics.median(sample() for _ in range(21))


def bar(name, shape, make, flops=None, size=None):
    """Measures calls with so many operations, or so many bytes."""
    line = {"bar": name, "shape": shape, "gpu": GPU}
    try:
        line["ms"] = measure(make)
        if flops:
            line["tflops"] = flops / line["ms"] / 1e9
        if size:
            line["gb_per_s"] = size / line["ms"] / 1e6
    except (RuntimeError, AttributeError, TypeError, ValueError,
            NotImplementedError) as error:
        line["error"] = (str(error).strip() or repr(error)).split("\n")[0]
    text = json.dumps(line)
    print(text, flush=True)
    if out:
        out.write(text + "\n")
        out.flush()


def normal(*shape, size=1.0):
    return size * torch.randn(shape, device=DEVICE, dtype=torch.float32
                              if TEST else torch.bfloat16)


def both_ways(name, shape, forward, inputs, gradients, sizes):
    """Forward alone, and with its way back by autograd.

    `inputs` and `gradients` make tensors. `sizes`: bytes of forward, and of
    both.
    """
    def alone():
        tensors = inputs()
        return lambda: forward(*tensors)

    def with_backward():
        leaves = [x.requires_grad_() for x in inputs()]
        dout = gradients()
        return lambda: torch.autograd.grad(forward(*leaves), leaves, dout)
    bar(f"{name} forward", shape, alone, size=sizes[0])
    bar(f"{name} forward + backward", shape, with_backward, size=sizes[1])


GROUPS = ("gate_proj up_proj", "q_proj k_proj v_proj", "o_proj", "down_proj")


def products(model, rows):
    """y = x W^T and dx = dy W of the groups that share their input."""
    linears = SHAPES[model].linears()
    for group in GROUPS:
        width = linears[group.split()[0]][0]
        outputs = [linears[name][1] for name in group.split()]
        features = sum(outputs)
        flops = 2 * rows * width * features
        shape = {"model": model, "group": group, "rows": rows,
                 "in": width, "out": features}

        def forward():
            x, w = normal(rows, width), normal(features, width, size=0.02)
            return lambda: x @ w.t()

        def dx():
            dy, w = normal(rows, features), normal(features, width, size=0.02)
            return lambda: dy @ w
        bar("torch.mm forward", shape, forward, flops)
        bar("torch.mm dx", shape, dx, flops)

        # As libraries without a fused kernel do it, layer by layer.
        def layers():
            return [(normal(n, width, size=0.02), normal(rows, n),
                     normal(LORA_R, width, size=0.02),
                     normal(n, LORA_R, size=0.02)) for n in outputs]

        def lora_forward():
            x, each = normal(rows, width), layers()

            def call():
                for w, _, a, b in each:
                    torch.addmm(x @ w.t(), x @ a.t(), b.t())
            return call

        def lora_backward():
            x, each = normal(rows, width), layers()
            xas = [x @ a.t() for _, _, a, _ in each]

            def call():
                for (w, dy, a, b), xa in zip(each, xas):
                    dxa = dy @ b
                    torch.addmm(dy @ w, dxa, a)
                    dxa.t() @ x
                    dy.t() @ xa
            return call
        narrow = 2 * rows * LORA_R * (width * len(outputs) + features)
        bar("torch.mm, mm, addmm (LoRA) forward", shape, lora_forward,
            flops + narrow)
        bar("torch.mm, mm, addmm (LoRA) backward", shape, lora_backward,
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

    def two():
        return [normal(rows, hidden), normal(rows, hidden)]
    tensor = 2 * rows * hidden
    both_ways("rms_norm with residual", shape, norm, two, two,
              [4 * tensor, 9 * tensor])

    tensor = 2 * rows * wide
    both_ways("swiglu", shape, lambda gate, up: F.silu(gate) * up,
              lambda: [normal(rows, wide), normal(rows, wide)],
              lambda: [normal(rows, wide)], [3 * tensor, 9 * tensor])

    heads = [of.heads, of.kv_heads]
    weight_ = normal(HEAD_DIM)
    turn = torch.arange(rows, device=DEVICE)[:, None, None] % 512 \
        * 1e6 ** -(torch.arange(HEAD_DIM, device=DEVICE) % 64 / 64)
    cos, sin = turn.cos().to(weight.dtype), turn.sin().to(weight.dtype)

    def rotate(*tensors):
        results = []
        for x in tensors:
            x = F.rms_norm(x, (HEAD_DIM,), weight_, 1e-6)
            a, b = x.chunk(2, -1)
            results.append(x * cos + torch.cat((-b, a), -1) * sin)
        return results

    def per_head():
        return [normal(rows, n, HEAD_DIM) for n in heads]
    tensor = 2 * rows * sum(heads) * HEAD_DIM
    both_ways("qk-norm and rope", shape, rotate, per_head, per_head,
              [2 * tensor, 5 * tensor])

    def embedding():
        table = normal(50_000, hidden)
        ids = torch.arange(rows, device=DEVICE) * 7919 % 50_000
        return lambda: F.embedding(ids, table)
    bar("embedding", shape, embedding, size=4 * rows * hidden)


def head(model, rows):
    """Linear layer and loss of supervised rows, by way of all logits."""
    hidden = SHAPES[model].hidden
    words = 1000 if TEST else VOCABULARY
    shape = {"model": model, "rows": rows}
    flops = 2 * rows * hidden * words

    def tensors():
        return (normal(rows, hidden), normal(words, hidden, size=0.02),
                torch.arange(rows, device=DEVICE) * 97 % words)

    def loss(x, w, targets):
        return F.cross_entropy((x @ w.t()).float(), targets)

    def scores():
        x, w, targets = tensors()
        return lambda: loss(x, w, targets)

    def gradient():
        x, w, targets = tensors()
        x.requires_grad_()
        return lambda: torch.autograd.grad(loss(x, w, targets), x)
    bar("linear_cross_entropy scores", shape, scores, flops)
    bar("linear_cross_entropy gradient", shape, gradient, 2 * flops)


def adamw(model):
    """Clipping and the fused update of all adapters, in f32."""
    of = SHAPES[model]
    sizes = [side for _ in range(of.layers)
             for sides in of.linears().values() for side in sides]
    elements = LORA_R * sum(sizes)

    def step():
        params = [torch.nn.Parameter(torch.randn(LORA_R, n, device=DEVICE))
                  for n in sizes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0,
                                      fused=True, capturable=not TEST)

        def call():
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
        # Its moments are tensors of the call too.
        call()
        return call
    bar("clip_grad_norm_, fused AdamW", {"model": model, "elements": elements},
        step, size=38 * elements)


def attention(rows, length):
    """Causal, rows of one length, by the kernels that PyTorch carries."""
    for heads, kv_heads, models in ((16, 8, "0.6b, 1.7b"), (32, 8, "4b, 8b")):
        if not set(models.split(", ")) & set(args.models.split(",")):
            continue
        attention_of(rows, length, heads, kv_heads, models)


def attention_of(rows, length, heads, kv_heads, models):
    count = max(1, rows // length)
    total = count * length
    starts = torch.arange(0, total + 1, length, device=DEVICE,
                          dtype=torch.int32)
    shape = {"models": models, "heads": heads, "kv_heads": kv_heads,
             "rows": total, "length": length}
    # Forward: 2 products over half of the square; backward: 5.
    flops = 2 * total * length * heads * HEAD_DIM

    def tensors():
        return [normal(total, n, HEAD_DIM) for n in (heads, kv_heads, kv_heads)]

    def by_cudnn(*qkv):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2)
                   for x in qkv)
        kind = SDPBackend.MATH if TEST else SDPBackend.CUDNN_ATTENTION
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True)

    def cudnn():
        qkv = tensors()
        return lambda: by_cudnn(*qkv)

    def cudnn_both():
        qkv = [x.requires_grad_() for x in tensors()]
        dout = normal(total, heads, HEAD_DIM).unflatten(
            0, (count, length)).transpose(1, 2)
        return lambda: torch.autograd.grad(by_cudnn(*qkv), qkv, dout)

    def flash(q, k, v):
        return aten._flash_attention_forward(
            q, k, v, starts, starts, length, length, 0.0, True, False)

    def forward():
        qkv = tensors()
        return lambda: flash(*qkv)

    def backward():
        q, k, v = tensors()
        dout = normal(total, heads, HEAD_DIM)
        o, lse, seed, offset, _ = flash(q, k, v)
        return lambda: aten._flash_attention_backward(
            dout, q, k, v, o, lse, starts, starts, length, length, 0.0, True,
            seed, offset)
    bar("flash attention forward", shape, forward, flops)
    bar("flash attention backward", shape, backward, 5 * flops // 2)
    bar("cuDNN attention forward", shape, cudnn, flops)
    bar("cuDNN attention forward + backward", shape, cudnn_both,
        7 * flops // 2)


def main():
    models = ["tiny"] if TEST else args.models.split(",")
    if TEST:
        args.models = "0.6b"
    all_rows = [64] if TEST else list(map(int, args.rows.split(",")))
    lengths = [32] if TEST else list(map(int, args.lengths.split(",")))
    for model in models:
        for rows in all_rows:
            products(model, rows)
    for rows in all_rows:
        for length in lengths:
            attention(rows, length)
    for model in models:
        for rows in [8] if TEST else (512, 2176, 64):
            head(model, rows)
        for rows in all_rows:
            element_wise(model, rows)
        adamw(model)


main()
