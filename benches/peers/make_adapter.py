#!/usr/bin/env python3
"""Write the adapter that all sides of a benchmark start from.

    python make_adapter.py MODEL OUT [--r 16] [--alpha 32] [--seed 0]
                           [--target-modules q_proj,v_proj]

PEFT's own start for A (uniform up to 1 / sqrt(in)); B is small and random
instead of zero, so that gradients reach A from the first step and a wrong A
shows in the loss. The model is built without memory for its weights: only
shapes and names are taken from it.
"""
import argparse
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from workloads import ALL_LINEAR

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--r", type=int, default=16)
parser.add_argument("--alpha", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--target-modules", default=",".join(ALL_LINEAR))
args = parser.parse_args()
targets = args.target_modules.split(",")

torch.manual_seed(args.seed)
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(args.model))
tensors = {}
for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear) and name.split(".")[-1] in targets:
        key = f"base_model.model.{name}"
        bound = module.in_features ** -0.5
        tensors[f"{key}.lora_A.weight"] = torch.empty(
            args.r, module.in_features).uniform_(-bound, bound)
        tensors[f"{key}.lora_B.weight"] = torch.empty(
            module.out_features, args.r).normal_(0.0, 0.01)
args.out.mkdir(parents=True, exist_ok=True)
save_file(tensors, args.out / "adapter_model.safetensors",
          metadata={"format": "pt"})
LoraConfig(r=args.r, lora_alpha=args.alpha, lora_dropout=0.0, bias="none",
           target_modules=targets, task_type="CAUSAL_LM",
           base_model_name_or_path=str(args.model), inference_mode=True,
           ).save_pretrained(args.out)
