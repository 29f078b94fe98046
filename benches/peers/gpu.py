#!/usr/bin/env python3
"""tanren and its peers on one GPU: the same fine-tuning job, side by side.

    python gpu.py --workload w1 --peers hf,trl,unsloth,liger,tanren --out DIR
    python gpu.py --workload w1 --sequence tanren,hf,tanren,hf --out DIR
    python gpu.py --self-test

Starts one process after another (A B C D D C B A, three rounds, or as
--sequence says), checks first that each computes the same thing (--gate says
when), and writes DIR/results.json and DIR/results.md after every process. What
is not installed or fails is reported and stops nothing. --time-limit is for all
of it, the gate included. --prepare only makes model, adapter and rows, on the
processor, for a run that comes later. Exits 0 if
every setting was measured, 1 if not, 2 if the job itself could not be made.
README.md says what is measured and why it is fair.
"""
import argparse
import ctypes
import importlib.util
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import report
import watch
import workloads
from watch import Watch, machine

HERE = Path(__file__).resolve().parent
RATE = "1e-4"

# Options of gpu_peer.py, and the environment, of every setting there is.
SETTINGS = {
    "hf": (["--impl", "hf", "--group"], {}),
    "hf-compile": (["--impl", "hf", "--group", "--compile"], {}),
    "hf-blocks": (["--impl", "hf", "--group", "--compile-blocks"], {}),
    "hf-ckpt": (["--impl", "hf", "--group", "--checkpointing"], {}),
    "trl": (["--impl", "trl", "--group"], {}),
    "trl-ckpt": (["--impl", "trl", "--group", "--checkpointing"], {}),
    "liger": (["--impl", "liger", "--group"], {}),
    "liger-logits": (["--impl", "liger", "--group", "--no-fused-loss"], {}),
    "unsloth": (["--impl", "unsloth", "--group"], {}),
    "unsloth-ckpt": (["--impl", "unsloth", "--group", "--checkpointing"], {}),
    # Its checkpointing, but for as many layers as fit without.
    "unsloth-keep": (["--impl", "unsloth", "--group", "--checkpointing"],
                     {"UNSLOTH_GC_KEEP_LAYERS": "max"}),
    "unsloth-graphs": (["--impl", "unsloth", "--group"],
                       {"UNSLOTH_BLOCK_CUDAGRAPHS": "1"}),
    "tanren": ([], {}),
    "tanren-share": (["--share-prefix", "true"], {}),
}
MODULES = {"hf": ["peft"], "trl": ["peft", "trl", "datasets"],
           "liger": ["peft", "liger_kernel"], "unsloth": ["unsloth"]}


class Failure(Exception):
    """A process that did not do what it should, in one line."""


class OutOfTime(Failure):
    """The time limit of the whole benchmark."""


# What a setting may do wrong without stopping the others.
FAILURES = (Failure, OSError, LookupError, ValueError, ArithmeticError)


def reason(text):
    """The line of a log that says why a process failed."""
    lines = [x.strip() for x in text.splitlines() if x.strip()]
    errors = [x for x in lines if "rror" in x and "(most recent" not in x]
    return report.one_line((errors or lines or ["no output"])[-1])


def lead_group():
    """In a new process: a group of its own, which ends with this program."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(command, log, seconds, env=None):
    """Runs to the end; returns the output's last line, of JSON if there is any.

    In the folder of the log: some libraries write where they are started.
    Nothing that the process started is left: workers that compile would
    disturb the next one.
    """
    command = [str(x) for x in command]
    with open(log, "w") as out:
        try:
            child = subprocess.Popen(command, stdout=out, cwd=log.parent,
                                     stderr=subprocess.STDOUT,
                                     stdin=subprocess.DEVNULL,
                                     preexec_fn=lead_group,
                                     env={**os.environ, **(env or {})})
        except OSError as error:
            raise Failure(str(error)) from None
        try:
            code = child.wait(None if seconds == math.inf else seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"stopped after {seconds:.0f} s") from None
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
    text = log.read_text(errors="replace")
    if code:
        raise Failure(f"exit code {code}: {reason(text)}")
    lines = text.splitlines()
    # A library may have the last word.
    return next((x for x in reversed(lines) if x.startswith("{")),
                lines[-1] if lines else "")


def missing(name, workload, tanren):
    """What a setting needs and this machine or job does not have, or None."""
    if name == "unsloth-graphs" and workload.spread:
        return "Unsloth turns its graphs off where widths of steps differ"
    if name.startswith("tanren"):
        return None if tanren.exists() else f"not built: {tanren}"
    modules = ["torch", "transformers", *MODULES[name.split("-")[0]],
               *(["bitsandbytes"] if workload.quant != "none" else [])]
    absent = [x for x in modules if importlib.util.find_spec(x) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def told(error):
    """An exception as a reason in a table."""
    return str(error) if isinstance(error, Failure) \
        else f"{type(error).__name__}: {error}"


class Job:
    """A workload with its files: model, adapter, rows; once for timing and
    once, with four layers, for the gate."""

    def __init__(self, args, workload):
        self.args, self.workload = args, workload
        self.end = time.monotonic() + (args.time_limit or math.inf)
        self.out, self.cache = args.out, args.cache or args.out / "cache"
        for folder in (self.out / "logs", self.out / "runs", self.cache):
            folder.mkdir(parents=True, exist_ok=True)
        self.gpu = args.device == "cuda"
        self.layers = workloads.SHAPES[workload.model].layers

    def run(self, command, label, env=None, seconds=None):
        """`run`, within the time that a process and the benchmark have."""
        left = self.end - time.monotonic()
        if left < 1:
            raise OutOfTime("not started: the time was up")
        try:
            return run(command, self.out / "logs" / f"{label}.log",
                       min(left, seconds or self.args.timeout), env)
        except Failure:
            if time.monotonic() < self.end:
                raise
            raise OutOfTime(f"stopped after {left:.0f} s: the time was up") \
                from None

    def prepare(self):
        # One more than is measured, for tanren_time.
        steps = max(self.args.warmup + self.args.steps + 1,
                    self.args.gate_steps)
        count = steps * self.workload.samples
        if self.args.rows:
            rows = workloads.read_rows(self.args.rows)
            rows = (rows * -(-count // len(rows)))[:count]
        else:
            rows = workloads.draw_rows(self.workload, count, self.args.seed)
        self.rows = self.out / "rows.jsonl"
        workloads.write_rows(self.rows, rows)
        self.step_tokens = [
            sum(len(row["input_ids"]) for row in rows[i:i + self.workload.samples])
            for i in range(0, count, self.workload.samples)]
        measured = rows[self.args.warmup * self.workload.samples:][
            :self.args.steps * self.workload.samples]
        self.flops_per_token = workloads.flops(self.workload, measured) \
            / sum(len(row["input_ids"]) for row in measured)
        self.model, self.adapter = self.make(0)
        self.gate_model = self.gate_adapter = None
        if self.args.gate == "before" or self.args.prepare:
            self.prepare_gate()

    def prepare_gate(self):
        """The model with four layers; made late where the clock comes first."""
        if self.gate_model is None:
            self.gate_model, self.gate_adapter = \
                self.make(min(4, self.layers))

    def make(self, layers):
        """Model and adapter folders; made once, for all runs to come."""
        model = self.cache / (f"{self.workload.model}-{layers or 'all'}"
                              f"{'' if self.gpu else '-f32'}")
        self.make_once(model, lambda folder: [
            HERE / "make_model.py", folder, "--model", self.workload.model,
            "--layers", layers, "--tokenizer",
            "--dtype", "bf16" if self.gpu else "f32",
            "--device", "cpu" if self.args.prepare else self.args.device])
        adapter = self.cache / (f"adapter-{model.name}-r{self.workload.r}-"
                                f"{len(self.workload.targets)}")
        self.make_once(adapter, lambda folder: [
            HERE / "make_adapter.py", model, folder,
            "--r", self.workload.r, "--alpha", self.workload.alpha,
            "--target-modules", ",".join(self.workload.targets)])
        return model, adapter

    def make_once(self, folder, command):
        """A folder gets its name when it is complete."""
        if folder.exists():
            return
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        self.run([sys.executable, *command(part)], f"make_{folder.name}",
                 seconds=math.inf)
        part.rename(folder)

    # ---- one process each ----

    def peer(self, name, options, env, gate, label):
        mode = ["--mode", "gate", "--warmup", 0, "--steps",
                self.args.gate_steps, "--grads", self.grads(name)] if gate \
            else ["--mode", "time", "--warmup", self.args.warmup,
                  "--steps", self.args.steps]
        cap = ["--cap-gib", self.args.cap_gib] \
            if self.args.cap_gib and not gate else []
        line = self.run(
            [sys.executable, HERE / "gpu_peer.py", *options, *mode,
             "--model", self.gate_model if gate else self.model,
             "--init-adapter", self.gate_adapter if gate else self.adapter,
             "--rows", self.rows, "--samples", self.workload.samples,
             "--quant", self.workload.quant, "--learning-rate", RATE, *cap,
             "--device", self.args.device], label, env)
        try:
            return json.loads(line)
        except ValueError:
            raise Failure(f"no result: {report.one_line(line)}") from None

    def grads(self, name):
        return self.cache / f"grads-{name}.safetensors"

    def tanren(self, options, gate, label, steps, more):
        out = self.cache / f"out-{label}"
        began = time.perf_counter()
        self.run([self.args.tanren, "train", "--preset", "none",
                  "--task", "causal",
                  "--model", self.gate_model if gate else self.model,
                  "--train-file", self.rows, "--output-dir", out, "--overwrite",
                  "--init-adapter", self.gate_adapter if gate else self.adapter,
                  "--lora-r", self.workload.r,
                  "--lora-alpha", self.workload.alpha,
                  "--target-modules", ",".join(self.workload.targets),
                  "--lora-dropout", 0, "--quant", self.workload.quant,
                  "--batch-size", self.workload.samples,
                  "--max-tokens-per-pass", max(self.step_tokens),
                  "--max-seq-length", max(self.step_tokens),
                  "--max-steps", steps, "--shuffle", "false",
                  "--logging-steps", 1, "--save-steps", steps,
                  "--lr-scheduler", "constant", "--weight-decay", 0, "--device", self.args.device,
                  "--dtype", "bf16" if self.gpu else "f32",
                  *(["--memory-limit", f"{self.args.cap_gib}GiB"]
                    if self.args.cap_gib and not gate else []),
                  *options, *more, *self.args.tanren_arg],
                 label)
        process = time.perf_counter() - began
        with open(out / "training_log.jsonl") as lines:
            lines = [json.loads(x) for x in lines]
        logged = [x for x in lines if "loss" in x]
        if len(logged) != steps:
            raise Failure(f"{len(logged)} steps in the log instead of {steps}")
        return logged, lines[-1], process, out

    def tanren_time(self, options, label):
        # A GPU works on the next step while one is finished, so that steps end
        # later than they are computed; only the last one has none behind it.
        total = self.args.warmup + self.args.steps + 1
        logged, last, process, _ = self.tanren(
            options, False, label, total,
            ["--learning-rate", RATE, "--max-grad-norm", "1.0"])
        for step, tokens in zip(logged, self.step_tokens):
            if step["num_tokens"] != tokens:
                raise Failure(f"step {step['step']} has {step['num_tokens']} "
                              f"tokens instead of {tokens}")
        steps = [{"samples": self.workload.samples, "tokens": x["num_tokens"],
                  "supervised": x["num_supervised_tokens"],
                  "seconds": x["step_seconds"]}
                 for x in logged[self.args.warmup:-1]]
        training = sum(x["step_seconds"] for x in logged[1:])
        return {"steps": steps, "losses": [x["loss"] for x in logged],
                "first_step_seconds": process - training,
                "peak_allocated": last.get("peak_tensor_bytes")}

    def tanren_gate(self, name, options):
        # One update with a huge epsilon moves weights by their gradients.
        _, _, _, out = self.tanren(
            options, True, f"gate-{name}-gradients", 1,
            ["--learning-rate", "1e10", "--adam-epsilon", "1e6",
             "--max-grad-norm", 0])
        logged, *_ = self.tanren(
            options, True, f"gate-{name}", self.args.gate_steps,
            ["--learning-rate", RATE, "--max-grad-norm", "1.0"])
        return [x["loss"] for x in logged], \
            ["--before", self.gate_adapter, "--after", out]

    # ---- the gate and the clock ----

    def gate(self, name, reference):
        options, env = SETTINGS[name]
        try:
            if name.startswith("tanren"):
                losses, grads = self.tanren_gate(name, options)
            else:
                losses = self.peer(name, options, env, True,
                                   f"gate-{name}")["losses"]
                grads = [self.grads(name)]
            line = self.run([sys.executable, HERE / "gradients.py",
                             self.grads("reference"), *grads],
                            f"gate-{name}-cosine")
            return {"loss": losses[0],
                    "loss_gap": report.gap(losses[0], reference[0]),
                    "curve_gap": report.curve_gap(losses, reference),
                    **json.loads(line)}
        except FAILURES as error:
            return {"error": told(error)}

    def measure(self, name, label, peak):
        options, env = SETTINGS[name]
        seconds = Watch()
        try:
            result = self.tanren_time(options, label) \
                if name.startswith("tanren") \
                else self.peer(name, options, env, False, label)
        finally:
            seen = seconds.stop() if self.gpu else {}
        result.update(report.summarise(result, self.flops_per_token, peak,
                                       report.shares(name)))
        result["watch"] = seen
        (self.out / "runs" / f"{label}.json").write_text(
            json.dumps(result, indent=1) + "\n")
        return result


def document(facts, results, gate):
    """The Markdown file."""
    first = next((r for x in results.values() for r in x["runs"]
                  if r.get("versions")), {})
    watched = [r["watch"] for x in results.values() for r in x["runs"]
               if r.get("watch")]
    lines = [f"# {facts['workload']}: {facts['title']}", "", facts["what"], "",
             report.table(results), ""]
    for key, text in (("gate_error", "The settings were not checked against "
                       "the reference, or not all of them"),
                      ("stopped", "The time limit ended the benchmark")):
        if facts.get(key):
            lines += [f"{text}: {facts[key]}.", ""]
    if gate and any(result.get("gate") for result in results.values()):
        lines += ["Besides the clock: step 0 and its adapter gradients against "
                  "transformers in f32, on four layers.", "",
                  report.gate_table(results), ""]
    lines.append(f"GPU: {facts['gpu']}, driver {facts['driver']}.")
    if watched:
        sm = [w["clocks.sm"] for w in watched]
        lines.append(f"Clock of the multiprocessors while it worked: "
                     f"{min(sm):.0f} to {max(sm):.0f} MHz (medians of runs).")
    if first:
        lines.append("Versions: " + ", ".join(
            f"{k} {v}" for k, v in first["versions"].items()) + ".")
    attention = [f"{name} {x['runs'][-1]['attention']}"
                 for name, x in results.items()
                 if x["runs"] and x["runs"][-1].get("attention")]
    if attention:
        lines.append(f"Attention: {'; '.join(attention)}.")
    lines.append("Peers spend much of a small step on launching kernels, and "
                 "a faster GPU waits longer for them: read the speeds together "
                 "with the share of time in which the GPU was busy.")
    return "\n".join(lines) + "\n"


def compare(args):
    workload = workloads.with_options(
        workloads.WORKLOADS[args.workload], args.model, args.samples,
        args.tokens)
    job = Job(args, workload)
    facts = {"workload": args.workload, **machine()}
    peak = args.peak_tflops or report.peak_tflops(facts["gpu"])
    try:
        job.prepare()
    except FAILURES as error:
        print(f"the job could not be made: {told(error)}", file=sys.stderr)
        return 2
    if args.prepare:
        print("prepared")
        return 0
    mean = statistics.mean(job.step_tokens)
    rounds = f"in the order {', '.join(args.sequence)}" if args.sequence \
        else f"{args.rounds} rounds there and back"
    facts["title"] = workload.title
    facts["what"] = (
        f"Qwen3-{workload.model}, {'bf16' if job.gpu else 'f32'}"
        f"{', ' + workload.quant if workload.quant != 'none' else ''}, LoRA r "
        f"{workload.r} on {', '.join(workload.targets)}; {workload.samples} "
        f"rows a step, {mean:.0f} tokens on average; {args.steps} steps after "
        f"{args.warmup}, {rounds}"
        f"{f'; memory capped at {args.cap_gib} GiB' if args.cap_gib else ''}.")
    print(facts["what"], file=sys.stderr)
    results = {name: {"runs": []} for name in args.peers}
    for name, result in results.items():
        why = missing(name, workload, args.tanren)
        if why:
            result["error"] = why

    def save():
        """What there is by now: the benchmark may be ended from outside."""
        text = document(facts, results, args.gate != "no")
        (args.out / "results.md").write_text(text)
        (args.out / "results.json").write_text(json.dumps(
            {"facts": facts, "peak_tflops": peak, "results": results},
            indent=1) + "\n")
        return text
    save()
    if args.gate == "before":
        check_all(job, facts, results, save)
    measure_all(job, facts, results, peak, save)
    if args.gate == "after":
        check_all(job, facts, results, save)
    print(save())
    return 0 if all(x["runs"] and not x.get("error")
                    for x in results.values()) else 1


def check_all(job, facts, results, save):
    """The gate; what does not pass it has an error in its result.

    Where the clock comes first, time that is up is no fault of a setting.
    """
    late = job.args.gate == "after"
    try:
        job.prepare_gate()
        reference = job.peer("reference", ["--impl", "reference"], {}, True,
                             "gate-reference")["losses"]
    except FAILURES as error:
        facts["gate_error"] = told(error)
        print(f"no reference, so no gate: {told(error)}", file=sys.stderr)
        job.args.gate = "no"
        return
    for name, result in results.items():
        if result.get("error"):
            continue
        if late and time.monotonic() + 1 > job.end:
            facts["gate_error"] = f"{name} was not started: the time was up"
            return
        print(f"gate: {name}", file=sys.stderr)
        gate = job.gate(name, reference)
        if late and time.monotonic() >= job.end and gate.get("error"):
            facts["gate_error"] = f"{name}: {gate['error']}"
            return
        result["gate"] = gate
        verdict = report.judge(gate)
        if verdict and not job.args.force:
            result["error"] = f"gate: {verdict}"
        save()


def measure_all(job, facts, results, peak, save):
    """The clock: all settings that may run, in turn."""
    rounds = job.args.rounds
    able = [name for name in results if not results[name].get("error")]
    turns = [(0, name) for name in job.args.sequence if name in able] \
        if job.args.sequence else report.order(able, rounds)
    for index, (number, name) in enumerate(turns):
        if results[name].get("error"):
            continue
        print(f"run {index + 1} of {len(turns)}: {name}", file=sys.stderr)
        try:
            results[name]["runs"].append(
                job.measure(name, f"{name}-{index}", peak))
        except OutOfTime as error:
            facts["stopped"] = f"{name} in round {number + 1} was {error}"
            print(facts["stopped"], file=sys.stderr)
            break
        except FAILURES as error:
            results[name]["error"] = told(error)
        save()


def self_test():
    workloads.self_test()
    report.self_test()
    watch.self_test()
    assert reason("a\nValueError: b\n\n") == "ValueError: b"
    assert reason("Traceback (most recent call last):\nc") == "c"
    assert reason("") == "no output"
    w1, w5 = workloads.WORKLOADS["w1"], workloads.WORKLOADS["w5"]
    assert missing("tanren", w5, Path("/nowhere/tanren"))
    assert "graphs" in missing("unsloth-graphs", w1, Path())
    assert "graphs" not in (missing("unsloth-graphs", w5, Path()) or "")
    assert told(Failure("a")) == "a" and told(KeyError("a")) == "KeyError: 'a'"
    for name in SETTINGS:
        assert name.startswith("tanren") or name.split("-")[0] in MODULES
    facts = {"workload": "w1", "title": "t", "what": "w", "gpu": "g",
             "driver": "1"}
    run_ = {"steps": [{"tokens": 10, "samples": 1, "seconds": 1.0}],
            "versions": {"torch": "2"}, "attention": "sdpa",
            "watch": {"clocks.sm": 1500.0}}
    run_.update(report.summarise(run_, 1.0, None))
    page = document({**facts, "stopped": "hf was late", "gate_error": "died"},
                    {"hf": {"runs": [run_]},
                     "trl": {"runs": [], "error": "x"}}, True)
    for part in ("| hf | 1.0 | 10 |", "| trl | x |", "1500 to 1500 MHz",
                 "torch 2", "Attention: hf sdpa.", "hf was late", "died."):
        assert part in page, part
    assert math.isclose(run_["padding"], 0.0)
    print("self-test: ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--self-test", action="store_true",
                        help="check rows, statistics and tables; needs no torch")
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="w1")
    parser.add_argument("--peers", default="hf,trl,unsloth,liger,tanren",
                        help=f"settings with commas between, or all: "
                             f"{', '.join(SETTINGS)}")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path,
                        help="models and adapters (default: OUT/cache)")
    parser.add_argument("--tanren", type=Path,
                        default=HERE / "../../target/release/tanren")
    parser.add_argument("--tanren-arg", action="append", default=[],
                        help="one more argument for tanren train "
                             "(--tanren-arg=--flag; may be repeated)")
    parser.add_argument("--rows", type=Path,
                        help="pre-tokenised rows (rows.py) instead of drawn ones")
    parser.add_argument("--model", choices=workloads.SHAPES)
    parser.add_argument("--samples", type=int, help="rows of a step")
    parser.add_argument("--tokens", type=int, help="about as many tokens a step")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gate-steps", type=int, default=20)
    parser.add_argument("--sequence", help="settings in the order of their "
                        "runs, instead of --peers and --rounds")
    parser.add_argument("--gate", choices=["before", "after", "no"],
                        default="before",
                        help="check that all compute the same thing before "
                             "they are timed, or with the time left behind")
    parser.add_argument("--no-gate", dest="gate", action="store_const",
                        const="no")
    parser.add_argument("--prepare", action="store_true",
                        help="only make model, adapter and rows")
    parser.add_argument("--force", action="store_true",
                        help="measure also what fails the gate")
    parser.add_argument("--cap-gib", type=float,
                        help="memory of each process, as on a smaller card")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--timeout", type=float, default=300,
                        help="seconds of one process")
    parser.add_argument("--time-limit", type=float,
                        help="seconds of the whole benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    if args.self_test:
        self_test()
        return
    if args.out is None:
        parser.error("--out is needed")
    args.sequence = args.sequence.split(",") if args.sequence else None
    args.peers = list(dict.fromkeys(args.sequence)) if args.sequence \
        else list(SETTINGS) if args.peers == "all" else args.peers.split(",")
    unknown = [name for name in args.peers if name not in SETTINGS]
    if unknown:
        parser.error(f"no setting {', '.join(unknown)}; there are "
                     f"{', '.join(SETTINGS)}")
    for name in ("out", "cache", "tanren", "rows"):
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    # So that a process is not left behind when this one is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.warmup < 1 or args.steps < 1:
        parser.error("--warmup and --steps are at least 1")
    sys.exit(compare(args))


if __name__ == "__main__":
    main()
