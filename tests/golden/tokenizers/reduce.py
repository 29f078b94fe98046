"""Reduces a byte-level BPE tokenizer to what the golden texts need, with all ids unchanged.

    python3 reduce.py FULL_FOLDER CASE_JSON OUTPUT_FOLDER

Kept: normalizer, pre-tokenizer, decoder, added tokens, the 256 byte tokens, and for every id of the golden case the
merges that build it. Merges that never apply to a text cannot change its ids, so the golden texts keep theirs; other
texts get longer encodings than with the full tokenizer, but decode to the same text.
"""
import json
import pathlib
import shutil
import sys


def ids_in(value):
    """All ids of the golden case: every list of integers under a key that ends in `ids`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from item if key.endswith("ids") else ids_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from ids_in(item)


def fired(token, ranks):
    """The merges that build `token` from its bytes."""
    parts, used = list(token), []
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in ranks]
        if not pairs:
            return parts, used
        rank, i = min(pairs)
        used.append(rank)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def main():
    source, case, target = map(pathlib.Path, sys.argv[1:])
    full = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = full["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    names = {id: token for token, id in model["vocab"].items()}
    added = {token["id"]: token["content"] for token in full["added_tokens"]}
    vocab = {token for token in model["vocab"] if len(token) == 1}
    used = set()
    for id in set(ids_in(json.loads(case.read_text(encoding="utf-8")))) - set(added):
        parts, ranks_used = fired(names[id], ranks)
        assert parts == [names[id]], names[id]
        used.update(ranks_used)
    vocab.update("".join(merges[rank]) for rank in used)
    vocab.update(part for rank in used for part in merges[rank])
    kept = {token: id for token, id in model["vocab"].items() if token in vocab}
    # In the vocabulary too, or the library would number the added tokens anew from its size.
    kept.update((content, id) for id, content in added.items())
    model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    model["merges"] = [" ".join(merges[rank]) for rank in sorted(used)]
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(full, ensure_ascii=False, separators=(",", ":"))
    (target / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    for name in ("tokenizer_config.json", "LICENSE-APACHE-2.0.txt"):
        shutil.copyfile(source / name, target / name)


main()
