#!/usr/bin/env python3
"""Write a model folder with the widths of Qwen3-0.6B and random weights.

    python make_model.py OUT [--layers 4] [--seed 0]

Full vocabulary (151936), tied embeddings, f32, normal(0, 0.02), norms at 1.
No tokenizer: the rows of the benchmark are pre-tokenised.
"""
import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("out", type=Path)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

config = Qwen3Config(
    vocab_size=151936, hidden_size=1024, intermediate_size=3072,
    num_hidden_layers=args.layers, num_attention_heads=16,
    num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6,
    rope_theta=1e6, max_position_embeddings=40960, initializer_range=0.02,
    tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645)
torch.manual_seed(args.seed)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
model.save_pretrained(args.out, safe_serialization=True)
(args.out / "generation_config.json").unlink(missing_ok=True)
print(f"{args.out}: {args.layers} layers, "
      f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
