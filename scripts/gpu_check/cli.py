"""Runs the parts of a check one after another, within one deadline for all of them.

    run [PART...] [--limit 540] [--filter WORDS] [--record] [--test-seconds N]

The parts of a plain run have a budget each. A part has its budget and all that the parts before it left; the reserve at the end
belongs to none. Results are on disk at every moment: in $OUT, or ./out.
"""
import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

from . import parts, peers, sanitizer
from .child import Processes
from .machine import Machine
from .results import BAD, Log, Results, summary

RESERVE = 15.0
# In the order of value. Seconds of 540 s, which is what they add up to with the reserve.
BUDGETS = {"device": 15, "kernels": 110, "goldens": 50, "train_step": 60, "quick_benches": 60, "bars": 40, "peers": 110,
           "sanitizer": 80}
# By name only; their seconds are shares of the time that is given.
MORE = {"primitives": 20, "determinism": 200, "steps": 300, "benches": 500}
RUN = {"device": parts.device, "kernels": parts.kernels, "goldens": parts.goldens, "train_step": parts.train_step,
       "quick_benches": parts.quick_benches, "bars": peers.bars, "peers": peers.peers, "sanitizer": sanitizer.sanitizer,
       "primitives": parts.primitives, "determinism": parts.determinism, "steps": parts.steps, "benches": parts.benches}
# Take PyTorch, so a program of ours that does not start is no reason to leave them out.
BY_PYTHON = ("bars", "peers")
# The driver's first start may take long, and nothing can be said without it.
FIRST_ANSWER = 60.0
LOGS = ["tests.log", "benches.log", "peers.log", "sanitizer.log"]


def arguments(argv):
    parser = argparse.ArgumentParser(prog="run", description="Checks tanren on the GPU of this machine.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(BUDGETS)} (all of them), or {', '.join(MORE)}")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for everything (540)")
    parser.add_argument("--filter", default=os.environ.get("FILTER", ""),
                        help="words: tests and benchmarks with one of them in their name (or FILTER of the environment)")
    parser.add_argument("--record", action="store_true", help="write the bits that this GPU gives for the primitives")
    parser.add_argument("--test-seconds", type=float, help="a test without a result for so long hangs (15 to 30)")
    parser.add_argument("--test-device", default="cuda", choices=["cuda", "emulator"], help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(argv)
    unknown = [name for name in options.parts if name not in RUN]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(RUN)}")
    if options.limit <= 0:
        parser.error("--limit takes seconds")
    options.parts = list(dict.fromkeys(options.parts)) or list(BUDGETS)
    # The device is asked first: the others rest on what it says.
    if "device" not in options.parts:
        options.parts.insert(0, "device")
    return options


def ends(names, limit):
    """When each part ends at the latest, in seconds after the start: what the ones before it leave is its own."""
    budgets = {**BUDGETS, **MORE}
    reserve = min(RESERVE, limit * RESERVE / 540)
    share = (limit - reserve) / sum(budgets[name] for name in names)
    total, found = 0.0, {}
    for name in names:
        total += budgets[name] * share
        found[name] = total
    if "device" in found:
        found["device"] = max(found["device"], min(FIRST_ANSWER, limit - reserve))
    return found


class Run:
    """One check, from the arguments to the exit code."""

    def __init__(self, here, options):
        self.began = time.monotonic()
        self.options = options
        out = os.path.abspath(os.environ.get("OUT", "out"))
        work = os.environ.get("WORK") or os.path.join(tempfile.gettempdir(), f"tanren-gpu-check.{os.getuid()}")
        os.makedirs(out, exist_ok=True)
        os.makedirs(work, exist_ok=True)
        version = read(os.path.join(here, "VERSION")) or "of unknown version"
        self.results = Results(out, version, options.limit, options.parts)
        logs = {name: Log(os.path.join(out, name)) for name in LOGS}
        self.machine = Machine(here, work)
        self.processes = Processes(work, {})
        self.context = parts.Context(self.machine, self.results, self.processes, logs, options)
        self.clocks = None

    def main(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stopped)
        self.machine.look()
        for fact in self.machine.facts:
            self.results.about(fact)
        self.processes.env = {**os.environ, **self.machine.env}
        shutil.rmtree(os.path.join(self.processes.work, f"peers-{peers.WORKLOAD}"), ignore_errors=True)
        self.clocks = Clocks(self.processes, self.machine)
        latest = ends(self.options.parts, self.options.limit)
        print(f"{'part':<14} {'result':<10} {'seconds':>7}", flush=True)
        for name in self.options.parts:
            self.part(name, self.began + latest[name])
        peers.end_preparation(self.context)
        self.processes.kill_all()
        self.results.finish("Complete")
        print(f"written: {self.results.out}/results.md, results.jsonl and {', '.join(LOGS)}")
        found = [part["result"] for part in self.results.parts.values()]
        return 1 if parts.FAILED in found else 3 if any(x != parts.PASSED for x in found) else 0

    def part(self, name, end):
        context = self.context
        began = time.monotonic()
        self.processes.end = end
        self.results.start(name)
        if name == "kernels" and "peers" in self.options.parts and not context.no_gpu:
            peers.prepare(context)
        # From the first part that is timed on, nothing runs beside it.
        if name not in ("device", "kernels", "goldens"):
            peers.end_preparation(context)
        self.clocks.mark()
        if context.no_gpu and name != "primitives":
            result, note = parts.SKIPPED, context.no_gpu
        elif context.no_programs and name not in BY_PYTHON:
            result, note = parts.SKIPPED, context.no_programs
        elif end - began < 0.5:
            result, note = None, ""
        else:
            try:
                result, note = RUN[name](context)
            except Exception as error:  # A mistake of the runner must not end the check.
                result, note = parts.FAILED, f"the runner: {type(error).__name__}: {error}"
                self.results.failure(f"{name}: the runner", note, traceback.format_exc())
        clocks = self.clocks.since_mark()
        note = f"{note}; {clocks}" if clocks and result else note
        seconds = time.monotonic() - began
        self.results.end(name, result, seconds, note)
        print(f"{name:<14} {result or 'not reached':<10} {seconds:7.1f}  {note}", flush=True)

    def stopped(self, number, _frame):
        """Somebody ends the run: what there is counts, the part that ran was not finished."""
        self.processes.kill_all()
        for name, part in self.results.parts.items():
            if part["result"] == "running":
                counts = self.results.counts(name)
                wrong = any(counts.get(bad) for bad in BAD) or any(x[0].startswith(f"{name}:") for x in self.results.failures)
                note = "; ".join(filter(None, [summary(counts), "ended from outside"]))
                part.update(result=parts.FAILED if wrong else parts.CUT, note=note)
        self.results.finish(f"NOT COMPLETE: ended by {signal.Signals(number).name}")
        os._exit(128 + number)


class Clocks:
    """nvidia-smi beside all parts: it shows the clocks, and keeps the driver from starting anew for every process."""

    FIELDS = "clocks.sm,power.draw,temperature.gpu,utilization.gpu"

    def __init__(self, processes, machine):
        self.path = os.path.join(processes.work, "clocks.csv")
        self.at = 0
        self.child = None
        if machine.card and shutil.which("nvidia-smi"):
            log = Log(os.devnull)
            self.child = processes.start(["sh", "-c", f"exec nvidia-smi --query-gpu={self.FIELDS} "
                                          f"--format=csv,noheader,nounits -lms 250 >{self.path}"], log)

    def mark(self):
        self.at = os.path.getsize(self.path) if self.child and os.path.exists(self.path) else 0

    def since_mark(self):
        """The middle clock and the highest temperature while the GPU worked, since the last mark."""
        if not self.child or not os.path.exists(self.path):
            return None
        samples = []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            file.seek(self.at)
            for line in file:
                try:
                    sample = [float(x) for x in line.split(",")]
                except ValueError:
                    continue
                if len(sample) == 4 and sample[3] > 0:
                    samples.append(sample)
        if not samples:
            return None
        samples.sort()
        return f"{samples[len(samples) // 2][0]:.0f} MHz, up to {max(x[2] for x in samples):.0f} degrees"


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def main(here, argv):
    run = Run(here, arguments(argv))
    try:
        return run.main()
    except Exception as error:
        run.results.failure("the runner", f"{type(error).__name__}: {error}", traceback.format_exc())
        run.results.finish(f"NOT COMPLETE: the runner failed: {error}")
        raise
    finally:
        run.processes.kill_all()
