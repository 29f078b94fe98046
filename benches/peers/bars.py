#!/usr/bin/env python3
"""Bars for kernel benchmarks: the same products by cuBLAS and flash attention.

    python bars.py [--out bars.jsonl] [--models 0.6b,1.7b,4b,8b]
                   [--rows 2176,4352] [--lengths 300,512,1024]

torch.mm is cuBLAS; attention is aten's flash attention over rows of any
length. Random data, never zeros: the clocks of a GPU depend on the bits. One
JSON line for each bar: {"bar", "shape", "ms", "tflops", "gpu"}; `ms` is the
median of 21 samples of events around 5 calls, as in `benches/kernels`.
"""
import argparse
import json
import statistics
import sys

import torch

from workloads import SHAPES

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--out")
parser.add_argument("--models", default="0.6b,1.7b,4b,8b")
parser.add_argument("--rows", default="2176,4352")
parser.add_argument("--lengths", default="300,512,1024")
args = parser.parse_args()
if not torch.cuda.is_available():
    print(json.dumps({"error": "torch sees no GPU"}))
    sys.exit(1)
GPU = torch.cuda.get_device_name()
out = open(args.out, "w") if args.out else None
torch.manual_seed(0)


def measure(call):
    def sample(calls):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls
    sample(3)
    return statistics.median(sample(5) for _ in range(21))


def bar(name, shape, flops, call):
    try:
        ms = measure(call)
        line = {"bar": name, "shape": shape, "ms": ms,
                "tflops": flops / ms / 1e9, "gpu": GPU}
    except (RuntimeError, AttributeError) as error:
        line = {"bar": name, "shape": shape, "gpu": GPU,
                "error": str(error).split("\n")[0]}
    text = json.dumps(line)
    print(text, flush=True)
    if out:
        out.write(text + "\n")


def normal(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def products(rows):
    """y = x W^T and dx = dy W of the groups that share their input."""
    for model in args.models.split(","):
        linears = SHAPES[model].linears()
        for group in ("q_proj k_proj v_proj", "o_proj", "gate_proj up_proj",
                      "down_proj"):
            width = linears[group.split()[0]][0]
            features = sum(linears[name][1] for name in group.split())
            x, w = normal(rows, width), normal(features, width)
            dy = normal(rows, features)
            flops = 2 * rows * width * features
            shape = {"model": model, "group": group, "rows": rows,
                     "in": width, "out": features}
            bar("torch.mm forward", shape, flops, lambda: x @ w.t())
            bar("torch.mm dx", shape, flops, lambda: dy @ w)


def attention(rows, length):
    """Causal, rows of one length, by the kernels that PyTorch carries."""
    for heads, kv_heads, models in ((16, 8, "0.6b, 1.7b"), (32, 8, "4b, 8b")):
        count = max(1, rows // length)
        total = count * length
        starts = torch.arange(0, total + 1, length, device="cuda",
                              dtype=torch.int32)
        q, dout = normal(total, heads, 128), normal(total, heads, 128)
        k, v = normal(total, kv_heads, 128), normal(total, kv_heads, 128)
        shape = {"models": models, "heads": heads, "kv_heads": kv_heads,
                 "rows": total, "length": length}
        # Forward: 2 products over half of the square; backward: 5.
        flops = 2 * total * length * heads * 128
        aten = torch.ops.aten

        def forward():
            return aten._flash_attention_forward(
                q, k, v, starts, starts, length, length, 0.0, True, False)
        bar("flash attention forward", shape, flops, forward)
        try:
            o, lse, seed, offset, _ = forward()
        except RuntimeError:
            continue
        bar("flash attention backward", shape, 5 * flops // 2,
            lambda: aten._flash_attention_backward(
                dout, q, k, v, o, lse, starts, starts, length, length, 0.0,
                True, seed, offset))


for rows in map(int, args.rows.split(",")):
    products(rows)
    for length in map(int, args.lengths.split(",")):
        attention(rows, length)
