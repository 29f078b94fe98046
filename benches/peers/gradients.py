#!/usr/bin/env python3
"""Cosine between two sets of adapter gradients.

    python gradients.py REFERENCE.safetensors GRADS.safetensors
    python gradients.py REFERENCE.safetensors --before DIR --after DIR

The second form takes the gradients from one update with a huge epsilon: AdamW
then moves every weight by minus its gradient times one factor, the same for
all, which the cosine does not see. So a program needs no way to write
gradients. Prints {"cosine", "worst_cosine", "worst"} as JSON.
"""
import argparse
import json
import os

import torch
from safetensors.torch import load_file


def adapter(folder):
    return load_file(os.path.join(folder, "adapter_model.safetensors"))


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("reference")
parser.add_argument("grads", nargs="?")
parser.add_argument("--before")
parser.add_argument("--after")
args = parser.parse_args()

want = load_file(args.reference)
if args.grads:
    got = load_file(args.grads)
else:
    before, after = adapter(args.before), adapter(args.after)
    got = {name: before[name].double() - after[name].double()
           for name in before}
if sorted(want) != sorted(got):
    odd = sorted(set(want) ^ set(got))
    raise SystemExit(f"{len(odd)} tensors are on one side only: {odd[:4]}")


def cosine(products):
    dot, a, b = products
    return dot / (a * b) ** 0.5 if a * b else float("nan")


total, worst = [0.0, 0.0, 0.0], (2.0, None)
for name in sorted(want):
    a, b = want[name].double().flatten(), got[name].double().flatten()
    products = [(x @ y).item() for x, y in ((a, b), (a, a), (b, b))]
    total = [x + y for x, y in zip(total, products)]
    value = cosine(products)
    # Written so that a NaN is the worst.
    worst = worst if value >= worst[0] else (value, name)
print(json.dumps({"cosine": cosine(total), "worst_cosine": worst[0],
                  "worst": worst[1]}))
