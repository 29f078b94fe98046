#!/usr/bin/env python3
"""LoRA training with transformers + PEFT on the CPU in f32, timed.

    python train_peft.py --model DIR --rows rows.jsonl --steps 5
        [--init-adapter DIR] [--batch-size 4] [--micro-batch-size 4]
        [--threads 2] [--save DIR]

Rows are taken in file order and padded on the right to the longest of their
micro-batch. Speed counts real tokens only: the median over the steps after
the first. Prints one JSON line.
"""
import argparse
import json
import os
import resource
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--init-adapter")
parser.add_argument("--batch-size", type=int, default=4,
                    help="rows per optimizer step")
parser.add_argument("--micro-batch-size", type=int,
                    help="rows per forward pass (default: all of the step)")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--learning-rate", type=float, default=1e-4)
parser.add_argument("--weight-decay", type=float, default=0.01)
parser.add_argument("--lora-r", type=int, default=16)
parser.add_argument("--lora-alpha", type=int, default=32)
parser.add_argument("--save", help="write the trained adapter here")
args = parser.parse_args()
micro = args.micro_batch_size or args.batch_size
os.environ["OMP_NUM_THREADS"] = str(args.threads)   # before torch is loaded
os.environ["HF_HUB_OFFLINE"] = "1"
start = time.perf_counter()

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(0)
base = transformers.AutoModelForCausalLM.from_pretrained(
    args.model, dtype=torch.float32, attn_implementation="sdpa")
if args.init_adapter:
    model = peft.PeftModel.from_pretrained(base, args.init_adapter,
                                           is_trainable=True)
else:
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=0.0,
        target_modules="all-linear", task_type="CAUSAL_LM"))
params = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(params, lr=args.learning_rate,
                              weight_decay=args.weight_decay)
with open(args.rows) as lines:
    rows = [json.loads(line) for line in lines]


def pad(values, fill):
    width = max(map(len, values))
    return torch.tensor([v + [fill] * (width - len(v)) for v in values])


model.train()
steps, cursor, first_step = [], 0, None
for number in range(1, args.steps + 1):
    window = [rows[(cursor + i) % len(rows)] for i in range(args.batch_size)]
    cursor += args.batch_size
    batches = []
    for i in range(0, len(window), micro):
        part = window[i:i + micro]
        ids = [r["input_ids"] for r in part]
        batches.append(dict(
            input_ids=pad(ids, 0), labels=pad([r["labels"] for r in part], -100),
            attention_mask=pad([[1] * len(v) for v in ids], 0)))
    items = sum(x != -100 for r in window for x in r["labels"][1:])

    began = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = model(**batch, use_cache=False, num_items_in_batch=items).loss
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    seconds = time.perf_counter() - began

    first_step = first_step or time.perf_counter() - start
    steps.append({"step": number, "loss": total, "grad_norm": norm.item(),
                  "tokens": sum(len(r["input_ids"]) for r in window),
                  "padded_tokens": sum(b["input_ids"].numel() for b in batches),
                  "step_seconds": seconds})
    del loss, batch, batches
if args.save:
    model.save_pretrained(args.save, save_embedding_layers=False)
timed = steps[1:] or steps
print(json.dumps({
    "impl": "transformers+peft",
    "tokens_per_second": statistics.median(s["tokens"] / s["step_seconds"]
                                           for s in timed),
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "seconds_to_first_step": first_step,
    "batch_size": args.batch_size, "micro_batch_size": micro,
    "threads": args.threads,
    "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    "steps": steps}))
