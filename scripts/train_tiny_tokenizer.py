#!/usr/bin/env python3
"""Train the tokenizer of the tiny model on the lawqa training texts.

    pip install tokenizers==0.22.2
    python scripts/train_tiny_tokenizer.py [--check]

A byte-level BPE of 4096 entries with the normalizer (NFC) and the word
splitting of Qwen2.5. Writes assets/tiny_tokenizer/tokenizer.json and
tokenizer_config.json; the same bytes on every run. --check writes nothing and
fails if the files differ.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path

from tokenizers import (AddedToken, Regex, Tokenizer, __version__, decoders,
                        models, normalizers, pre_tokenizers, processors,
                        trainers)

PINNED = "0.22.2"
VOCAB = 4096
LONGEST = 24    # bytes, 8 Japanese characters: words, not learned sentences
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]   # ids 0, 1, 2
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT = ("{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content']"
        " + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        "{{- '<|im_start|>assistant\\n' }}"
        "{%- endif %}")

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples/lawqa"
OUT = ROOT / "assets/tiny_tokenizer"


def rows(name):
    with open(DATA / name, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train():
    """The trained tokenizer as compact JSON."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    byte_level = dict(add_prefix_space=False, trim_offsets=False,
                      use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(**byte_level)
    tok.decoder = decoders.ByteLevel(**byte_level)
    texts = [text for name in ("train.jsonl", "train_cot.jsonl")
             for row in rows(name) for text in (row["input"], row["output"])]
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, max_token_length=LONGEST, show_progress=False,
        special_tokens=[AddedToken(s, normalized=False, special=True)
                        for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tok.get_vocab_size() == VOCAB
    assert [tok.token_to_id(s) for s in SPECIAL] == [0, 1, 2]
    return json.dumps(json.loads(tok.to_str()), ensure_ascii=False,
                      separators=(",", ":")) + "\n"


def config():
    return json.dumps({
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": SPECIAL[1:2],
        "bos_token": None,
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2],
        "model_max_length": 4096,
        "pad_token": SPECIAL[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }, indent=1) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    if __version__ != PINNED:
        sys.exit(f"needs tokenizers {PINNED}, found {__version__}")
    files = {"tokenizer.json": train(), "tokenizer_config.json": config()}
    for name, text in files.items():
        if not check:
            (OUT / name).write_text(text, encoding="utf-8")
        elif (OUT / name).read_text(encoding="utf-8") != text:
            sys.exit(f"{name} differs from what this script writes")
    tok = Tokenizer.from_str(files["tokenizer.json"])
    counts = [len(tok.encode(r["input"] + "\n").ids)
              + len(tok.encode(r["output"]).ids) + 1
              for r in rows("valid.jsonl")]
    print(f"tokenizer.json: {len(files['tokenizer.json'].encode())} bytes; "
          f"valid.jsonl: {min(counts)} to {max(counts)} tokens per row, "
          f"mean {statistics.mean(counts):.0f}")


if __name__ == "__main__":
    main()
