#!/usr/bin/env python3
"""Write a model folder with the widths of a Qwen3 model and random weights.

    python make_model.py OUT [--model 0.6b] [--layers 4] [--seed 0]
                         [--dtype f32|bf16] [--device cpu|cuda] [--tokenizer]

Full vocabulary (151936), normal(0, 0.02), norms at 1. `--layers 0` is all of
them. The rows of the benchmarks are pre-tokenised; `--tokenizer` adds a
tokenizer of 1000 words for programs that do not start without one.
"""
import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from workloads import SHAPES, VOCABULARY

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("out", type=Path)
parser.add_argument("--model", choices=SHAPES, default="0.6b")
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--device", default="cpu", help="where numbers are drawn")
parser.add_argument("--tokenizer", action="store_true")
args = parser.parse_args()

shape = SHAPES[args.model]
layers = args.layers or shape.layers
config = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=shape.hidden,
    intermediate_size=shape.intermediate, num_hidden_layers=layers,
    num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6,
    max_position_embeddings=40960, initializer_range=0.02,
    tie_word_embeddings=shape.tied, bos_token_id=151643, eos_token_id=151645,
    pad_token_id=151643)
torch.manual_seed(args.seed)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
with torch.device(args.device):
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
model.save_pretrained(args.out, safe_serialization=True)
(args.out / "generation_config.json").unlink(missing_ok=True)
if args.tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = {f"<{i}>": i for i in range(1000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<0>",
                                   pad_token="<1>", eos_token="<2>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(args.out)
print(f"{args.out}: {layers} layers, "
      f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
