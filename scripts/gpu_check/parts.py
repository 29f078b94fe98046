"""The parts of a check: what runs, how its output becomes results, and what its verdict is.

A part is a function of the run's `Context` that returns (result, note): PASSED, FAILED, CUT where the time was up and nothing had
failed until then, or SKIPPED with the reason.
"""
import json
import os
import statistics
import time

from . import libtest
from .child import Reader
from .results import BAD, summary, tail

PASSED, FAILED, CUT, SKIPPED = "passed", "FAILED", "cut short", "skipped"

# How often tests repeat themselves where nobody asked for more.
REPEATS = 20
BENCH_OPS = ["lora_matmul", "linear_cross_entropy", "attention", "activation", "norm", "qk_norm_rope", "adamw", "rows", "embedding",
             "dora"]


class Context:
    """What the parts share."""

    def __init__(self, machine, results, processes, logs, options):
        self.machine, self.results, self.processes, self.logs, self.options = machine, results, processes, logs, options
        self.no_gpu = None      # why nothing can run on a card here
        self.no_programs = None  # why ours cannot, though there may be a card
        self.preparation = None

    def program(self, name):
        return os.path.join(self.machine.bin, name)

    def left(self):
        return self.processes.end - time.monotonic()

    @property
    def filters(self):
        return self.options.filter.split()


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error[")]
    return (errors or lines or ["no output"])[-1]


def verdict(outcome, measured, note):
    """The result of a program that measures, by how it ended and whether anything was measured."""
    if "there is no GPU to measure" in outcome.text:
        return FAILED, "the program found no GPU"
    if outcome.ok:
        return (PASSED, note) if measured else (FAILED, "nothing was measured")
    if outcome.stopped == "out of time":
        return CUT, f"out of time; {note}" if measured else "out of time before the first figure"
    return FAILED, f"{outcome.why()}: {last_line(outcome.text)}"


# ---- the device ----

def device(ctx):
    """The card as the program sees it, and the self-test: memory, copies, launches, primitives."""
    machine, results, log = ctx.machine, ctx.results, ctx.logs["tests.log"]
    if machine.broken:
        ctx.no_programs = machine.broken
        return FAILED, machine.broken
    tanren = ctx.program("tanren")
    outcome = ctx.processes.run([tanren, "inspect", "device", "--device", "cuda:0"], log)
    if not outcome.ok:
        why = outcome.stopped or last_line(outcome.text).replace("error[DEVICE] ", "").split("; fix:")[0]
        if machine.card is None and not outcome.stopped:
            ctx.no_gpu = why
            return SKIPPED, why
        ctx.no_programs = f"the program does not use the GPU: {why}"
        results.failure("device: tanren inspect device", why, outcome.text)
        return FAILED, ctx.no_programs
    results.page("device", "Device", "```\n" + tail(outcome.text, 40) + "\n```")
    outcome = ctx.processes.run([tanren, "inspect", "device", "--device", "cuda:0", "--self-test"], log)
    if outcome.ok:
        return PASSED, "self-test passed"
    results.failure("device: self-test", outcome.why(), outcome.text)
    return FAILED, f"self-test: {outcome.why()}"


# ---- tests ----

def run_tests(ctx, part, binary, filters, runner=None, choose=None):
    """The tests of a binary for cards, as a part of their own."""
    path = ctx.program(binary)
    env = {**os.environ, **ctx.machine.env}
    tests, why = libtest.listed(path, part, env, filters)
    tests = [test for test in tests if choose is None or choose(test)]
    if why:
        return FAILED, f"the tests cannot be listed: {why}"
    if not tests:
        if filters:
            return SKIPPED, f"no test for cards has {' or '.join(filters)} in its name"
        return FAILED, "there is no test for cards"
    ctx.results.plan(part, tests)
    runner = runner or libtest.Runner(
        ctx.processes, ctx.results, ctx.logs["tests.log"], path, seconds=test_seconds(ctx),
        env={"TANREN_TEST_DEVICE": ctx.options.test_device, "TANREN_TEST_REPEATS": repeats(ctx, REPEATS)})
    runner.run(tests)
    return judge_tests(ctx, part)


def judge_tests(ctx, part):
    counts = ctx.results.counts(part)
    note = summary(counts)
    if any(counts.get(bad) for bad in BAD):
        return FAILED, note
    if counts.get(None) or not counts.get("ok"):
        return CUT, note
    return PASSED, note


def test_seconds(ctx):
    limit = ctx.options.test_seconds
    return {kind: limit or seconds for kind, seconds in libtest.SECONDS.items()}


def repeats(ctx, otherwise):
    return os.environ.get("TANREN_TEST_REPEATS", str(otherwise))


def kernels(ctx):
    """The kernel tests of all ops on the card; fresh memory is NaN in them, by their debug assertions."""
    return run_tests(ctx, "kernels", "lib-tests", ctx.filters)


def goldens(ctx):
    """Whole fine-tuning runs against transformers + PEFT, and what else the integration tests have for cards."""
    return run_tests(ctx, "goldens", "it-tests", ctx.filters)


def determinism(ctx):
    """The tests that repeat themselves, 250 times each."""
    os.environ.setdefault("TANREN_TEST_REPEATS", "250")
    result, note = run_tests(ctx, "determinism", "lib-tests", ctx.filters,
                             choose=lambda test: test.kind == libtest.REPEATS)
    return result, f"{note}; {os.environ['TANREN_TEST_REPEATS']} repeats each"


def primitives(ctx):
    """The primitives against the stored bits, on the emulator where there is no GPU; `--record` writes what this GPU gives."""
    options = ctx.options
    if options.record:
        os.environ["TANREN_RECORD_PRIMITIVES"] = os.path.join(ctx.results.out, "primitives.txt")
    if ctx.no_gpu:
        options.test_device = "emulator"
    result, note = run_tests(ctx, "primitives", "lib-tests", ["device::primitives"])
    return result, f"{note}, on the emulator: {ctx.no_gpu}" if ctx.no_gpu else note


# ---- speed ----

class Figures(Reader):
    """The rows of the tables that a program prints become rows of ours at once. A line of dashes makes the one before it a head."""

    def __init__(self, ctx, part, title):
        self.ctx, self.part, self.title = ctx, part, title
        self.head = self.before = None
        self.count = 0

    def line(self, text):
        cells = [cell.strip() for cell in text.strip().strip("|").split("|")]
        if not text.startswith("|"):
            cells = None
        elif set(text) <= set("|-: "):
            self.head = self.before
        elif self.head and len(cells) == len(self.head):
            self.count += 1
            self.ctx.results.number(self.part, self.title, self.head, cells)
        self.before = cells


QUICK = {"TANREN_BENCH_QUICK": "1"}


def train_step(ctx):
    """Whole optimizer steps: tokens/s, busy share, share of the floor, memory. The smaller model first, and quickly."""
    return step_benches(ctx, "train_step", [(QUICK, []), ({}, ["qwen3-1.7b"])], "Whole steps (train_step)")


def step_benches(ctx, part, runs, title):
    total, results, notes = 0, [], []
    for env, words in runs:
        reader = Figures(ctx, part, title)
        outcome = ctx.processes.run([ctx.program("step-benches"), "--bench", *words], ctx.logs["benches.log"], reader=reader,
                                    env=env)
        result, note = verdict(outcome, reader.count, "")
        if result == FAILED:
            ctx.results.failure(f"{part}: train_step {' '.join(words)}".strip(), note, outcome.text)
        total += reader.count
        results.append(result)
        notes += [note.strip("; ")] if result != PASSED else []
    worst = next((result for result in (FAILED, CUT) if result in results), PASSED)
    return worst, "; ".join([f"{total} sizes measured", *notes])


def run_benches(ctx, part, env):
    """The kernel benchmarks, each op in a process of its own: a broken driver ends that process only."""
    ops = [op for op in BENCH_OPS if not ctx.filters or any(op in word or word in op for word in ctx.filters)]
    # Other words are parts of names.
    runs = [(op, [f"{op}/"]) for op in ops] or [(" ".join(ctx.filters), ctx.filters)]
    total, wrong, cut = 0, [], []
    for number, (name, words) in enumerate(runs):
        reader = Figures(ctx, part, "Kernel benchmarks")
        # Early ops may take more than their share; what they leave is for the later ones.
        seconds = 2 * ctx.left() / (len(runs) - number) if number + 1 < len(runs) else float("inf")
        outcome = ctx.processes.run([ctx.program("kernel-benches"), "--bench", *words], ctx.logs["benches.log"], seconds, reader,
                                    {"CRITERION_HOME": os.path.join(ctx.processes.work, "criterion"), **env})
        total += reader.count
        result, note = verdict(outcome, reader.count, "")
        if result == FAILED:
            wrong.append(name)
            ctx.results.failure(f"{part}: {name}", note, outcome.text)
        elif result == CUT:
            cut.append(name)
    note = f"{total} figures"
    if wrong:
        return FAILED, f"{note}; failed: {', '.join(wrong)}"
    return (CUT, f"{note}; not to the end: {', '.join(cut)}") if cut else (PASSED, note)


def quick_benches(ctx):
    """The kernel benchmarks in their quick mode."""
    return run_benches(ctx, "quick_benches", QUICK)


def benches(ctx):
    """The kernel benchmarks in full."""
    return run_benches(ctx, "benches", {})


CAPPED = "under 9.3 GiB"
ATTENTION = "q_proj,k_proj,v_proj,o_proj"
TRAININGS = [
    ("0.6B, 32 rows of 200, r 64 on q k v o", "qwen3-0.6b", "w1", 32, 64, ATTENTION, []),
    (f"0.6B, 32 rows of 200, r 64 on q k v o, {CAPPED}", "qwen3-0.6b", "w1", 32, 64, ATTENTION, ["--memory-limit", "9.3GiB"]),
    ("0.6B, 8 rows of 512, r 16 on all", "qwen3-0.6b", "w5", 8, 16, "all-linear", []),
    ("1.7B, 4 rows of 1024, r 16 on all", "qwen3-1.7b", "w2", 4, 16, "all-linear", []),
    (f"1.7B, 4 rows of 1024, r 16 on all, {CAPPED}", "qwen3-1.7b", "w2", 4, 16, "all-linear", ["--memory-limit", "9.3GiB"]),
]


def steps(ctx):
    """Trainings of 20 steps by the command line, free and under the memory of a 10 GB card."""
    wanted = [t for t in TRAININGS if ctx.options.filter in t[0]]
    wrong = []
    if ctx.options.filter in f"train_step {CAPPED}":
        result, note = step_benches(ctx, "steps", [({"TANREN_BENCH_MEMORY_GIB": "9.3"}, [])], f"Whole steps {CAPPED}")
        if result == FAILED:
            wrong.append(f"train_step: {note}")
    for training in wanted:
        why = train(ctx, *training)
        if why:
            wrong.append(f"{training[0]}: {why}")
    return (FAILED, "; ".join(wrong)) if wrong else (PASSED, f"{len(wanted)} trainings")


def train(ctx, name, variant, rows, samples, r, targets, more):
    """One training; why it failed, or None."""
    tanren, work, log = ctx.program("tanren"), ctx.processes.work, ctx.logs["benches.log"]
    model, out = os.path.join(work, f"model-{variant}"), os.path.join(work, "steps")
    if not os.path.exists(f"{model}.made"):
        outcome = ctx.processes.run([tanren, "init", "--variant", variant, "--output-dir", model, "--dtype", "bf16"], log, 120)
        if not outcome.ok:
            return outcome.why()
        open(f"{model}.made", "w").close()
    outcome = ctx.processes.run(
        [tanren, "train", "--preset", "none", "--device", "cuda", "--dtype", "bf16", "--model", model, "--train-file",
         os.path.join(ctx.machine.rows, f"{rows}.jsonl"), "--output-dir", out, "--overwrite", "--lora-r", r, "--lora-alpha", 2 * r,
         "--target-modules", targets, "--shuffle", "false", "--batch-size", samples, "--max-tokens-per-pass", 16384,
         "--max-steps", 20, "--logging-steps", 1, "--save-steps", 20, *more], log, 75)
    if not outcome.ok:
        ctx.results.failure(f"steps: {name}", outcome.why(), outcome.text)
        return outcome.why()
    with open(os.path.join(out, "training_log.jsonl"), encoding="utf-8") as lines:
        lines = [json.loads(line) for line in lines]
    # Steps 6 to 20; memory is in the last line.
    logged = [line for line in lines if "loss" in line][5:]
    seconds = sum(line["step_seconds"] for line in logged)
    peak = max(line.get("peak_tensor_bytes", 0) for line in lines)
    ctx.results.number("steps", "Trainings by the command line", ["training", "tokens/s", "median ms", "peak GiB"], [
        name, f"{sum(line['num_tokens'] for line in logged) / seconds:.0f}",
        f"{1e3 * statistics.median(line['step_seconds'] for line in logged):.2f}", f"{peak / 2 ** 30:.2f}"])
    return None
