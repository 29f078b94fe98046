"""Parts `bars` and `peers`: PyTorch's kernels on our shapes, and the whole job by transformers + PEFT beside ours.

Both take the PyTorch, transformers and PEFT of the machine. Models are made in the background while tests run, which are not
timed; so the time of `peers` goes into steps.
"""
import json
import os

from .child import Reader
from .machine import extract
from .parts import CUT, FAILED, PASSED, SKIPPED, last_line

WORKLOAD = os.environ.get("WORKLOAD", "w1")
# A pair at the start and another one behind it: a run that is cut has something to compare.
SEQUENCE = "tanren,hf,hf-blocks,tanren,hf"


def script(ctx, name):
    return os.path.join(ctx.machine.here, "peers", name)


class Bars(Reader):
    """Each line of bars.py is a bar."""

    HEAD = ["bar", "shape", "ms", "TFLOP/s", "GB/s"]

    def __init__(self, ctx):
        self.ctx, self.count, self.errors = ctx, 0, 0

    def line(self, text):
        try:
            bar = json.loads(text)
            name, shape = bar["bar"], bar["shape"]
        except (ValueError, LookupError, TypeError):
            return
        self.count += "ms" in bar
        self.errors += "error" in bar
        cells = [f"{bar[key]:.{digits}f}" if key in bar else ""
                 for key, digits in (("ms", 4), ("tflops", 1), ("gb_per_s", 0))]
        if "error" in bar:
            cells[0] = bar["error"][:80]
        self.ctx.results.number("bars", "PyTorch's kernels at these shapes (bars)", self.HEAD,
                                [name, ", ".join(f"{k} {v}" for k, v in shape.items()), *cells], bar=bar)


def bars(ctx):
    """cuBLAS, flash attention and the rest of what PyTorch carries."""
    machine = ctx.machine
    why = machine.lacks("torch")
    if why:
        return SKIPPED, why
    reader = Bars(ctx)
    models = os.environ.get("BARS", "0.6b,8b")
    outcome = ctx.processes.run(
        [machine.python, script(ctx, "bars.py"), "--models", models, "--rows", "2176", "--lengths", "300,1024"],
        ctx.logs["benches.log"], reader=reader, env=machine.python_env)
    note = f"{reader.count} bars{f', {reader.errors} that PyTorch refuses' if reader.errors else ''}"
    if outcome.stopped:
        return (CUT if reader.count else FAILED), f"{note}; {outcome.stopped}"
    if not outcome.ok or not reader.count:
        ctx.results.failure("bars", outcome.why() or "no bar", outcome.text)
        return FAILED, f"{note}; {outcome.why()}: {last_line(outcome.text)}"
    return PASSED, note


# ---- the whole job ----

def folders(ctx):
    return os.path.join(ctx.processes.work, f"peers-{WORKLOAD}"), os.path.join(ctx.processes.work, "models")


def command(ctx, *more):
    out, cache = folders(ctx)
    return [ctx.machine.python, script(ctx, "gpu.py"), "--workload", WORKLOAD, "--out", out, "--cache", cache,
            "--tanren", ctx.program("tanren"), *more, *os.environ.get("PEERS_ARGS", "").split()]


def prepare(ctx):
    """Starts making the model and the adapter, on the processor. It also brings PyTorch into the page cache."""
    if ctx.machine.lacks("torch", "transformers", "peft"):
        return
    ctx.preparation = ctx.processes.start(command(ctx, "--prepare"), ctx.logs["peers.log"], ctx.machine.python_env)


def end_preparation(ctx):
    """It must not run beside anything that is timed. What it has not finished, `peers` makes."""
    child, ctx.preparation = ctx.preparation, None
    if child is None:
        return
    outcome = child.wait(0.0, Reader())
    ctx.processes.running.discard(child)
    ctx.results.about("the peers' model was made in the background" if outcome.code == 0 and not outcome.stopped else
                      f"the peers' model was not made in the background: {outcome.why() or 'not finished'}")


class Pages(Reader):
    """gpu.py writes its table after every run; a line of its log says so."""

    def __init__(self, ctx, path):
        self.ctx, self.path, self.stamp = ctx, path, None

    def stop(self):
        try:
            stamp = os.stat(self.path).st_mtime_ns
            if stamp != self.stamp:
                self.stamp = stamp
                with open(self.path, encoding="utf-8") as file:
                    text = file.read()
                self.ctx.results.page("peers", "The whole job beside its peers", text.replace("\n# ", "\n### ").lstrip("# "))
        except OSError:
            pass
        return None


def peers(ctx):
    """transformers + PEFT and tanren on one job, in turn."""
    why = ctx.machine.lacks("torch", "transformers", "peft")
    if why:
        return SKIPPED, why
    out, _ = folders(ctx)
    env = dict(ctx.machine.python_env)
    site = script(ctx, "site.tar.xz")
    if os.path.exists(site):
        why = extract(site, os.path.join(ctx.processes.work, "site"))
        if why:
            return FAILED, f"peers/site.tar.xz cannot be unpacked: {why}"
        env["PYTHONPATH"] = os.path.join(ctx.processes.work, "site")
    pages = Pages(ctx, os.path.join(out, "results.md"))
    sequence = os.environ.get("PEERS", SEQUENCE)
    # It ends in time by itself, so that its table says what is missing.
    seconds = max(1.0, ctx.left() - 4)
    outcome = ctx.processes.run(
        command(ctx, "--sequence", sequence, "--warmup", "5", "--steps", "15", "--gate", "after", "--timeout", "60",
                "--time-limit", f"{seconds:.0f}"),
        ctx.logs["peers.log"], reader=pages, env=env)
    pages.stop()
    runs = measured(out)
    ctx.results.record("peers", runs=runs)
    copy_logs(out, ctx.logs["peers.log"])
    note = ", ".join(f"{name} {'/'.join(f'{x:.0f}' for x in rates)} samples/s" for name, rates in runs.items() if rates)
    if outcome.ok:
        return PASSED, note
    if not note:
        ctx.results.failure("peers", outcome.why(), outcome.text)
        return FAILED, f"nothing was measured: {outcome.why()}: {last_line(outcome.text)}"
    return CUT, f"{note}; not every setting, the table says why"


def measured(out):
    """Samples per second of every run, by setting."""
    try:
        with open(os.path.join(out, "results.json"), encoding="utf-8") as file:
            results = json.load(file)["results"]
        return {name: [run["samples_per_second"] for run in result["runs"]] for name, result in results.items()}
    except (OSError, ValueError, LookupError):
        return {}


def copy_logs(out, log):
    """The end of every process's own log."""
    folder = os.path.join(out, "logs")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            log.write(f"==== {name}\n{file.read()[-20000:]}\n")
