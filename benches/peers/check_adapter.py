#!/usr/bin/env python3
"""Does an adapter written by tanren give the same numbers in PEFT?

    tanren score --model DIR --adapter ADAPTER --data-file rows.jsonl
        --mode logprob --output scores.jsonl --device cpu --dtype f32
    python check_adapter.py --model DIR --adapter ADAPTER --rows rows.jsonl
        --scores scores.jsonl [--limit N] [--tolerance 1e-3]

Loads the adapter with PEFT, recomputes the log-probability of every
supervised token and prints the largest difference. Exits 1 above the
tolerance.
"""
import argparse
import itertools
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--model", required=True)
parser.add_argument("--adapter", required=True)
parser.add_argument("--rows", required=True)
parser.add_argument("--scores", required=True)
parser.add_argument("--limit", type=int, help="only the first N rows")
parser.add_argument("--tolerance", type=float, default=1e-3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

torch.set_num_threads(args.threads)
base = transformers.AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32, attn_implementation="sdpa")
model = peft.PeftModel.from_pretrained(base, args.adapter).eval()


def read(path):
    with open(path) as lines:
        return [json.loads(x) for x in itertools.islice(lines, args.limit)]


rows, scores = read(args.rows), read(args.scores)
if len(rows) != len(scores):
    sys.exit(f"{len(rows)} rows but {len(scores)} scores")
worst, total, count = (0.0, None), 0.0, 0
with torch.no_grad():
    for index, (row, score) in enumerate(zip(rows, scores)):
        at = [t for t, x in enumerate(row["labels"]) if t and x != -100]
        got = torch.tensor(score["token_logprobs"], dtype=torch.float64)
        if len(got) != len(at):
            sys.exit(f"row {index}: {len(at)} supervised tokens, "
                     f"{len(got)} token_logprobs")
        if not at:
            continue
        logits = model(input_ids=torch.tensor([row["input_ids"]]),
                       use_cache=False).logits[0]
        want = torch.stack([
            logits[t - 1].double().log_softmax(-1)[row["labels"][t]]
            for t in at])
        diff = (want - got).abs()
        # A NaN must count as a difference; a comparison would drop it.
        largest = diff.max().item() if diff.isfinite().all() else float("inf")
        if worst[1] is None or largest > worst[0]:
            worst = (largest, index)
        total, count = total + diff.sum().item(), count + len(at)
print(json.dumps({
    "rows": len(rows), "tokens": count, "max_abs_diff": worst[0],
    "row_of_max": worst[1], "mean_abs_diff": total / max(count, 1),
    "versions": {m.__name__: m.__version__
                 for m in (torch, transformers, peft)}}))
sys.exit(0 if count and worst[0] <= args.tolerance else 1)
