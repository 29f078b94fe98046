#!/usr/bin/env python3
"""Convert the lawqa_jp data set to {input, output, meta} JSON lines.

    python scripts/convert_lawqa.py --source DIR_WITH_SELECTION_RANDOMIZED_JSON

examples/lawqa/README.md names the source, the licence and the rules.
"""
import argparse
import hashlib
import json
import math
import unicodedata
from pathlib import Path

ASK_DIRECT = "選択肢a、b、c、dの中から1つ選び、記号1文字だけで答えてください。"
ASK_COT = ("参照する条文を示し、最後の行に「答え: 」に続けて"
           "記号1文字で答えてください。")
QUOTE = 120     # characters of the provision quoted in a rationale


def sections(context):
    """[(heading path, body)] of a markdown-like statute context."""
    out, path, body = [], {}, []
    for line in context.split("\n") + ["#"]:
        level = len(line) - len(line.lstrip("#"))
        if not level:
            body.append(line)
            continue
        if "".join(body).strip():
            out.append((" ".join(path.values()), "\n".join(body).strip()))
        path = {k: v for k, v in path.items() if k < level}
        path[level], body = line[level:].strip(), []
    return out


def squash(text):
    return "".join(unicodedata.normalize("NFKC", text).split())


def bigrams(text):
    text = squash(text)
    return {text[i:i + 2] for i in range(len(text) - 1)}


def rationale(sample, kind):
    """Quote the context section behind the keyed choice, if one is found."""
    choice = dict(line.split(" ", 1) for line in
                  sample["選択肢"].split("\n"))[sample["output"]]
    found = sections(sample["コンテキスト"])
    if kind == "根拠条文":       # the choices are names of provisions
        found = [x for x in found if squash(x[0]) == squash(choice)]
    if not found:
        return None
    want = bigrams(choice) | bigrams(sample["問題文"])

    def score(item):
        have = bigrams("".join(item))
        return len(want & have) / math.sqrt(len(have) or 1)

    heading, body = max(found, key=score)
    quote = body.split("\n")[0]
    quote = quote if len(quote) <= QUOTE else quote[:QUOTE] + "…"
    return f"参照条文: {heading}\n引用: {quote}\n答え: {sample['output']}"


def group_by_statute(samples):
    """Group samples so that no statute text occurs in two groups."""
    groups = []
    for sample in samples:
        keys = {body for _, body in sections(sample["コンテキスト"])
                if len(body) > 15} | {sample["ファイル名"]}
        joined, rest = [sample], []
        for group_keys, members in groups:
            if keys & group_keys:
                keys, joined = keys | group_keys, members + joined
            else:
                rest.append((group_keys, members))
        groups = rest + [(keys, joined)]
    return [members for _, members in groups]


def split_groups(groups):
    """Per area of law about 15% test, 15% valid, 70% train, by hash."""
    by_law, split = {}, {"train": [], "valid": [], "test": []}
    for group in groups:
        by_law.setdefault(group[0]["ファイル名"].split("_")[0],
                          []).append(group)
    for members in by_law.values():
        members.sort(key=lambda g: hashlib.sha256(
            min(s["ファイル名"] for s in g).encode()).hexdigest())
        total, done = sum(map(len, members)), 0
        for group in members:
            name = ("test" if done < 0.15 * total else
                    "valid" if done < 0.30 * total else "train")
            split[name] += group
            done += len(group)
    return split


def rows_of(sample):
    """The direct row of a sample, and its cot row or None."""
    law, _, _, kind, _ = sample["ファイル名"].split("_")
    body = ("次の条文を読んで、問題に答えてください。\n\n"
            f"# 条文\n{sample['コンテキスト']}\n\n"
            f"# 問題\n{sample['問題文']}\n\n"
            f"# 選択肢\n{sample['選択肢']}\n\n")
    meta = {"id": sample["ファイル名"],
            "order": int(sample["回答オーダーマップ番号"]),
            "mode": "direct", "law": law, "kind": kind}
    direct = {"input": body + ASK_DIRECT, "output": sample["output"],
              "meta": meta}
    why = rationale(sample, kind)
    cot = {"input": body + ASK_COT, "output": why,
           "meta": {**meta, "mode": "cot"}}
    return direct, cot if why else None


def one_per_question(rows):
    """One choice order of each question; the answers rotate a, b, c, d."""
    ids = list(dict.fromkeys(r["meta"]["id"] for r in rows))
    return [next(r for r in rows if r["meta"]["id"] == name
                 and r["output"].endswith("abcd"[i % 4]))
            for i, name in enumerate(ids)]


def main():
    here = Path(__file__).resolve().parent.parent / "examples/lawqa"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=here)
    args = parser.parse_args()
    path = args.source / "selection_randomized.json"
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    for name, members in split_groups(group_by_statute(samples)).items():
        members.sort(key=lambda s: (s["ファイル名"],
                                    s["回答オーダーマップ番号"]))
        pairs = [rows_of(s) for s in members]
        cot = one_per_question([c for _, c in pairs if c])
        for suffix, rows in (("", [d for d, _ in pairs]), ("_cot", cot)):
            (args.out / f"{name}{suffix}.jsonl").write_text("".join(
                json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
                encoding="utf-8")
            print(name + suffix, len(rows))


if __name__ == "__main__":
    main()
