#!/usr/bin/env python3
"""Write the adapter that both sides of the benchmark start from.

    python make_adapter.py MODEL OUT [--r 16] [--alpha 32] [--seed 0]

PEFT's own start for A; B is small and random instead of zero, so that
gradients reach A from the first step and a wrong A shows in the loss.
"""
import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--r", type=int, default=16)
parser.add_argument("--alpha", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
    LoraConfig(r=args.r, lora_alpha=args.alpha, lora_dropout=0.0, bias="none",
               target_modules="all-linear", task_type="CAUSAL_LM"))
with torch.no_grad():
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.normal_(0.0, 0.01)
model.save_pretrained(args.out, save_embedding_layers=False)
(args.out / "README.md").unlink(missing_ok=True)
