"""The jobs of the GPU benchmark: models, rows, and what a step costs by count.

Nothing here needs torch. Rows are random ids: they cost what text costs, and
every implementation gets the same ones. A workload is a model, an adapter and
a way to draw rows; its rows follow from the seed alone.
"""
import dataclasses
import json
import random

# Token ids that rows are drawn from; the special tokens of Qwen lie above.
VOCABULARY = 151936
DRAWN_IDS = 151643

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = ATTENTION + ("gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen3 model; head_dim is 128."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool

    def linears(self):
        """(in, out) of the linear layers of one block by their names."""
        q, kv = self.heads * 128, self.kv_heads * 128
        h, i = self.hidden, self.intermediate
        return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv),
                "o_proj": (q, h), "gate_proj": (h, i), "up_proj": (h, i),
                "down_proj": (i, h)}


SHAPES = {
    "0.6b": Shape(1024, 3072, 28, 16, 8, True),
    "1.7b": Shape(2048, 6144, 28, 16, 8, True),
    "4b": Shape(2560, 9728, 36, 32, 8, True),
    "8b": Shape(4096, 12288, 36, 32, 8, False),
    # For checks of these scripts on a processor.
    "tiny": Shape(128, 256, 2, 2, 1, True),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """A fine-tuning job. `samples` are the rows of one optimizer step."""
    title: str
    model: str
    r: int
    targets: tuple
    samples: int
    length: int                # mean length of a row in tokens
    spread: int = 0            # standard deviation of the length
    longest: int = 0           # no row is longer (0: the mean is the length)
    supervised: float = 0.1    # share of a row with labels; 0: the last token
    prefixes: int = 0          # questions whose start rows have in common
    quant: str = "none"

    @property
    def alpha(self):
        return 2 * self.r


WORKLOADS = {
    "w1": Workload("classification with shared questions", "0.6b", 64,
                   ATTENTION, 32, 200, 60, 300, 0.0, 15),
    "w2": Workload("prompts and answers", "1.7b", 16, ALL_LINEAR, 4, 1024),
    "w2-4b": Workload("prompts and answers", "4b", 16, ALL_LINEAR, 4, 1024),
    "w3": Workload("QLoRA, short answers", "8b", 32, ALL_LINEAR, 2, 1024,
                   supervised=0.01, quant="nf4"),
    "w3-long": Workload("QLoRA, long answers", "8b", 32, ALL_LINEAR, 2, 1024,
                        supervised=0.3, quant="nf4"),
    "w5": Workload("equal rows, nothing to pad", "0.6b", 16, ALL_LINEAR,
                   8, 512),
    "tiny": Workload("check of the scripts", "tiny", 8, ALL_LINEAR, 4, 24, 6,
                     40, 0.2, 2),
}


def with_options(workload, model=None, samples=None, tokens=None):
    """The workload with another model, or with another size of a step."""
    changes = {"model": model} if model else {}
    if tokens:
        changes["samples"] = max(1, round(tokens / workload.length))
    if samples:
        changes["samples"] = samples
    return dataclasses.replace(workload, **changes)


def draw_rows(workload, count, seed=0):
    """`count` rows, {"input_ids", "labels"} each."""
    draw = random.Random(f"{workload.title} {seed}")
    longest = workload.longest or workload.length

    def ids(number):
        return draw.choices(range(DRAWN_IDS), k=number)

    # A question of about three quarters of a row, as long as a row at most.
    questions = [ids(min(longest, max(8, round(
        draw.gauss(0.75 * workload.length, 0.1 * workload.length)))))
        for _ in range(workload.prefixes)]
    rows = []
    for _ in range(count):
        length = round(draw.gauss(workload.length, workload.spread))
        length = min(longest, max(8, length))
        start = draw.choice(questions)[:length - 4] if questions else []
        row = start + ids(length - len(start))
        answer = max(1, round(workload.supervised * length))
        rows.append({"input_ids": row,
                     "labels": [-100] * (length - answer) + row[-answer:]})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path):
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def supervised_tokens(row):
    """Labels that are predicted: a row's first token has none before it."""
    return sum(label != -100 for label in row["labels"][1:])


def group_by_length(rows, batch):
    """Rows of similar length together, as length-grouping samplers do.

    Stretches of 50 steps are sorted; the order of the steps within a stretch
    is shuffled, so that no trend is left.
    """
    grouped, draw = [], random.Random(0)
    for start in range(0, len(rows), 50 * batch):
        part = sorted(rows[start:start + 50 * batch],
                      key=lambda row: -len(row["input_ids"]))
        steps = [part[i:i + batch] for i in range(0, len(part), batch)]
        # A last step that is not full stays the last one.
        full = len(steps) - (len(steps[-1]) < batch)
        order = draw.sample(range(full), full) + list(range(full, len(steps)))
        grouped += [row for step in order for row in steps[step]]
    return grouped


def flops(workload, rows, layers=None):
    """Operations of forward and backward that cannot be avoided.

    4 N for the frozen linear layers (forward, and the gradient of their
    input), 6 r (in + out) for an adapter, 7 S^2 for causal attention of a row
    of S tokens, 4 h V for each supervised token. Padding, logits of tokens
    without labels and recomputation do not count.
    """
    shape = SHAPES[workload.model]
    linears = shape.linears()
    frozen = sum(a * b for a, b in linears.values())
    adapted = sum(sum(linears[name]) for name in workload.targets)
    total = 0
    for row in rows:
        size = len(row["input_ids"])
        block = size * (4 * frozen + 6 * workload.r * adapted) \
            + 7 * size * size * shape.heads * 128
        total += block * (layers or shape.layers) \
            + 4 * shape.hidden * VOCABULARY * supervised_tokens(row)
    return total


def self_test():
    for name, workload in WORKLOADS.items():
        rows = draw_rows(workload, 200)
        assert rows == draw_rows(workload, 200) != draw_rows(workload, 200, 1)
        longest = workload.longest or workload.length
        sizes = [len(row["input_ids"]) for row in rows]
        assert all(len(row["labels"]) == n for row, n in zip(rows, sizes))
        assert 8 <= min(sizes) and max(sizes) <= longest, name
        mean = sum(sizes) / len(sizes)
        assert abs(mean - workload.length) < 0.1 * workload.length, (name, mean)
        assert all(0 <= i < DRAWN_IDS for row in rows for i in row["input_ids"])
        for row in rows:
            answer = supervised_tokens(row)
            assert row["labels"][-answer:] == row["input_ids"][-answer:]
            assert row["labels"][:-answer] == \
                [-100] * (len(row["labels"]) - answer)
        share = sum(map(supervised_tokens, rows)) / sum(sizes)
        if workload.supervised:
            assert abs(share - workload.supervised) < 0.03, (name, share)
        else:
            assert all(supervised_tokens(row) == 1 for row in rows)
    # Rows of one question begin alike.
    starts = {tuple(row["input_ids"][:50])
              for row in draw_rows(WORKLOADS["w1"], 200)
              if len(row["input_ids"]) > 60}
    assert len(starts) == 15, len(starts)

    rows = draw_rows(WORKLOADS["w1"], 1603)
    grouped = group_by_length(rows, 32)
    key = json.dumps
    assert sorted(map(key, rows)) == sorted(map(key, grouped)) and rows != grouped
    def padding(rows):
        steps = [rows[i:i + 32] for i in range(0, len(rows), 32)]
        return sum(len(s) * max(len(r["input_ids"]) for r in s) for s in steps) \
            / sum(len(r["input_ids"]) for r in rows)
    assert padding(grouped) < 1.1 < 1.3 < padding(rows)

    # Counts by hand: N of the models, and one small case.
    for name, millions in {"0.6b": 440, "1.7b": 1409, "4b": 3633,
                           "8b": 6946}.items():
        shape = SHAPES[name]
        number = shape.layers * sum(a * b for a, b in shape.linears().values())
        assert round(number / 1e6) == millions, (name, number)
    row = {"input_ids": [5] * 10, "labels": [-100] * 8 + [5, 5]}
    tiny = dataclasses.replace(WORKLOADS["tiny"], targets=("q_proj",), r=2)
    linears = 128 * 256 + 2 * 128 * 128 + 256 * 128 + 3 * 128 * 256
    block = 10 * (4 * linears + 6 * 2 * (128 + 256)) + 7 * 100 * 256
    assert flops(tiny, [row]) == 2 * block + 4 * 128 * VOCABULARY * 2
    assert with_options(WORKLOADS["w2"], tokens=8192).samples == 8
    assert with_options(WORKLOADS["w5"], "8b", 3).samples == 3
