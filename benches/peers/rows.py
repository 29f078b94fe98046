#!/usr/bin/env python3
"""Pre-tokenise the law questions: the same ids for every implementation.

    python rows.py TOKENIZER_DIR OUT.jsonl --form direct|full
                   [--data ../../examples/lawqa/train.jsonl] [--seed 0]

TOKENIZER_DIR is a Qwen2.5 or Qwen3 tokenizer (tokenizer.json and
tokenizer_config.json). Each line is {"input_ids": [...], "labels": [...]}.
`direct` supervises the answer only (letter and end token), `full` every token
but the first. Rows are shuffled with the seed: in the file, the four choice
orders of a question stand together and would hide what padding costs.
"""
import argparse
import json
import random
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("tokenizer", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--form", choices=["direct", "full"], required=True)
parser.add_argument("--data", type=Path,
                    default=HERE / "../../examples/lawqa/train.jsonl")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

tok = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
config = json.loads((args.tokenizer / "tokenizer_config.json").read_text())
eos = tok.token_to_id(config["eos_token"])


def encode(text):
    return tok.encode(text, add_special_tokens=False).ids


rows = []
with open(args.data, encoding="utf-8") as lines:
    for record in map(json.loads, lines):
        prompt = encode(record["input"] + "\n")
        ids = prompt + encode(record["output"]) + [eos]
        free = len(prompt) if args.form == "direct" else 1
        rows.append({"input_ids": ids, "labels": [-100] * free + ids[free:]})
random.Random(args.seed).shuffle(rows)
args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
lengths = [len(r["input_ids"]) for r in rows]
print(f"{args.out}: {len(rows)} rows, {min(lengths)} to {max(lengths)} tokens, "
      f"mean {sum(lengths) / len(rows):.0f}")
