"""Part `sanitizer`: compute-sanitizer over the kernel tests at small shapes, memcheck first, then racecheck.

A tool makes a test many times slower, so a test that is not done in time says nothing about its kernel; a line of the tool does.
Nothing is timed here, and the work is mostly the tool's on the processor, so several ops run at the same time.
"""
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

from . import libtest
from .parts import CUT, FAILED, PASSED, SKIPPED, last_line
from .results import summary

TOOLS = [("memcheck", 0.65), ("racecheck", 1.0)]
PLACES = ["/usr/local/cuda/bin/compute-sanitizer", "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
          "/opt/nvidia/compute-sanitizer/compute-sanitizer"]
# The tool's own lines that are no finding: how it starts and ends, and the places that belong to the finding above.
NO_FINDING = re.compile(r"COMPUTE-SANITIZER|Target application|process didn.t terminate|SUMMARY: 0 |^=+ *$|=+ {2,}|"
                        r"No kernels were launched|Saved host backtrace|Host Frame|Use --print-limit")
SUMMARY_LINE = re.compile(r"SUMMARY: ")
SECONDS = 30.0


class Watcher(libtest.Watcher):
    """Takes the tool's lines out of the output of the tests; one that is a finding fails the test that runs."""

    def __init__(self, tests, seconds, on_result):
        super().__init__(tests, seconds, on_result)
        self.findings, self.loose = [], []

    def line(self, text):
        # The first line may stand behind the name of the test, which has no end of line before its result.
        before, mark, finding = text.partition("=========")
        if not mark:
            super().line(text)
            return
        self.pending(before)
        if SUMMARY_LINE.search(finding) is None and NO_FINDING.search(mark + finding) is None:
            (self.findings if self.current else self.loose).append(finding.strip("= "))

    def settle(self, result, note=""):
        if self.current and self.findings:
            self.output += self.findings
            result, note = "FAILED", self.findings[0]
        super().settle(result, note)
        self.findings = []


class Runner(libtest.Runner):
    """Tests under one tool, whose names are the tool's and the test's."""

    def watcher(self, tests):
        watcher = Watcher(tests, SECONDS, self.results.test)
        # The binary knows them by their own names.
        watcher.tests = {test.path: test for test in tests}
        return watcher

    def process(self, tests, seconds):
        watcher = self.watcher(tests)
        outcome = self.processes.run(
            [*self.command, "--exact", "--nocapture", "--test-threads", "1", *(test.path for test in tests)],
            self.log, seconds, watcher, self.env)
        self.judge(watcher, outcome, tests)
        for finding in watcher.loose[:1]:
            self.results.failure(f"sanitizer: {tests[0].group}, between its tests", finding, "\n".join(watcher.loose))
            self.wrong = True
        return outcome

    wrong = False

    def hung(self, watcher, group):
        self.hangs[group] = self.hangs.get(group, 0) + 1
        watcher.settle("SKIPPED", f"too slow under the tool: no result after {SECONDS:.0f} s")


def sanitizer(ctx):
    """memcheck, then racecheck."""
    tool = shutil.which("compute-sanitizer") or next((x for x in PLACES if os.access(x, os.X_OK)), None)
    if tool is None:
        return SKIPPED, "compute-sanitizer of the CUDA toolkit is not here"
    log = ctx.logs["sanitizer.log"]
    why = does_not_run(ctx, tool, log)
    if why:
        return SKIPPED, f"compute-sanitizer does not run here: {why}"
    path = ctx.program("lib-tests")
    found, why = libtest.listed(path, "sanitizer", {**os.environ, **ctx.machine.env}, ctx.filters)
    if not found:
        return FAILED, f"no tests for cards: {why or 'none has such a name'}"
    kinds = os.environ.get("KINDS", "").split() or [name for name, _ in TOOLS]
    shares = dict(TOOLS)
    planned = {}
    for kind in kinds:
        planned[kind] = [named(kind, test) for test in found if test.kind == libtest.CHEAP]
        ctx.results.plan("sanitizer", planned[kind])
    begin, end = time.monotonic(), ctx.processes.end
    wrong = False
    for number, kind in enumerate(kinds):
        last = number + 1 == len(kinds)
        ctx.processes.end = end if last else begin + (end - begin) * shares.get(kind, 1 / len(kinds))
        # A call that the driver refuses is an answer that the tests look at themselves.
        flags = ["--report-api-errors", "no"] if kind == "memcheck" else []
        wrong |= under(ctx, [tool, "--tool", kind, "--error-exitcode", "99", *flags], planned[kind], log)
    ctx.processes.end = end
    counts = ctx.results.counts("sanitizer")
    note = summary(counts)
    if wrong or any(counts.get(x) for x in ("FAILED", "CRASHED")):
        return FAILED, note
    return (CUT if counts.get(None) or counts.get("SKIPPED") else PASSED), note


def does_not_run(ctx, tool, log):
    """On a virtual machine that hides the debug interface it cannot start; that is nothing about the kernels."""
    outcome = ctx.processes.run([tool, "--tool", "memcheck", ctx.program("tanren"), "inspect", "device", "--device", "cuda:0"],
                                log, 30)
    if "ERROR SUMMARY" in outcome.text:
        return None
    return outcome.why() if outcome.stopped else next(
        (line.strip("= ") for line in outcome.text.splitlines() if "rror" in line), last_line(outcome.text))


def named(kind, test):
    """The test under a tool: the same path, another name."""
    copy = libtest.Test("sanitizer", f"{kind} {test.name}", f"{kind} {test.group}", test.kind)
    copy.path = test.name
    return copy


def under(ctx, command, tests, log):
    """All ops under one tool, a few at a time; True if it found something outside of a test."""
    def op(group):
        runner = Runner(ctx.processes, ctx.results, log, ctx.program("lib-tests"), command, op_seconds=float("inf"),
                        env={"TANREN_TEST_DEVICE": ctx.options.test_device, "TANREN_TEST_REPEATS": "2"})
        runner.run([test for test in tests if test.group == group])
        return runner.wrong
    groups = dict.fromkeys(test.group for test in tests)
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 2) // 2))) as pool:
        return any(list(pool.map(op, groups)))
