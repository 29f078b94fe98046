"""Runs tests of a Rust test binary so that one bad kernel fails alone.

The tests of an op run in one process. A driver that has met a bad access answers every later call with the same error, so after
such an error, a crash or a hang the process is ended and the tests behind it run one by one, each in a process of its own. The
cheap tests of all ops come first, those at the shapes of real models second, and those that repeat themselves last.
"""
import re
import time

from .child import Reader
from .machine import ask
from .results import Test

START = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. ?(.*)$")
SUMMARY = re.compile(r"^test result: ")
STICKY = re.compile(r"CUDA_ERROR_[A-Z_]+|error\[DEVICE\].*|Device \{ what: .*")
PANIC = re.compile(r"^thread '.*' .*panicked at ")

CHEAP, REAL, REPEATS = "cheap", "real shapes", "repeats"
KINDS = (CHEAP, REAL, REPEATS)

# The order of ops: what everything rests on, then what takes the time of a step.
FIRST = ["device", "lora_matmul", "attention", "linear_cross_entropy", "norm", "qk_norm_rope", "activation", "adamw",
         "grad_norm", "embedding", "rows", "golden", "model", "train"]

# A test that gives no sign for so long hangs.
SECONDS = {CHEAP: 15.0, REAL: 30.0, REPEATS: 25.0}
# The tests of an op in one process, and those that run one by one behind them.
OP_SECONDS, ALONE_SECONDS = 40.0, 20.0
# An op whose tests hang so often is not asked again.
MOST_HANGS = 2


def is_for_cards(name):
    """Whether a test runs on a card: a part of its path starts with `gpu`, and none is about the emulator."""
    return any(part.startswith("gpu") for part in name.split("::")) and "emulator" not in name


def op_of(name):
    """The op a test belongs to: what stands behind `ops::`, or the first part of its path."""
    parts = name.split("::")
    if "ops" in parts[:-1]:
        return parts[parts.index("ops") + 1]
    return parts[0]


def kind_of(name):
    if "real_shapes" in name:
        return REAL
    return REPEATS if "gpu_repeats" in name else CHEAP


def place(test):
    known = FIRST.index(test.group) if test.group in FIRST else len(FIRST)
    return KINDS.index(test.kind), known, test.group


def listed(binary, part, env, filters=()):
    """The tests of a binary for cards, in the order in which they run; and why there are none."""
    text, why = ask([binary, "--list"], env, 60)
    if text is None:
        return [], why
    names = [line[:-len(": test")] for line in text.splitlines() if line.endswith(": test")]
    names = [name for name in names if is_for_cards(name)
             and (not filters or any(word in name for word in filters))]
    return sorted((Test(part, name, op_of(name), kind_of(name)) for name in names), key=place), None


class Watcher(Reader):
    """Follows what a test binary prints, with `--nocapture`: results as they come, and who hangs."""

    def __init__(self, tests, seconds, on_result):
        self.tests = {test.name: test for test in tests}
        self.seconds, self.on_result = seconds, on_result
        self.current, self.began, self.output = None, time.monotonic(), []
        self.done, self.sticky, self.hung = set(), None, False
        self.over = False

    def line(self, text):
        # What comes behind the driver's error is its echo.
        if self.sticky:
            return
        match = START.match(text)
        if match:
            self.begin(match.group(1))
            self.say(match.group(2))
        elif SUMMARY.match(text):
            self.settle("ok")
            self.over = True
        elif self.current:
            self.say(text)

    def pending(self, text):
        match = START.match(text)
        # The name is complete once the dots are there.
        if match and not self.sticky:
            self.begin(match.group(1))

    def begin(self, name):
        if name == self.current:
            return
        # Its `ok` was hidden behind its own output; a failure would have said so on a line of its own.
        self.settle("ok")
        self.current, self.began, self.output = name, time.monotonic(), []

    def say(self, text):
        if text in ("ok", "FAILED") or text.startswith("ignored"):
            self.settle(text.split(",")[0])
        elif text:
            self.output.append(text)

    def settle(self, result, note=""):
        """The test that runs now has its result."""
        if self.current is None:
            return
        name, text = self.current, "\n".join(self.output)
        self.current = None
        if name not in self.tests or name in self.done:
            return
        self.done.add(name)
        if result == "FAILED":
            found = STICKY.search(text)
            self.sticky = found and found.group(0)
            note = note or reason(self.output)
        self.on_result(self.tests[name], result, time.monotonic() - self.began, note, text)

    def stop(self):
        if self.sticky:
            return "the driver's error would fail every later test of this process"
        if not self.over and time.monotonic() - self.began > self.seconds:
            self.hung = True
            return f"no sign for {self.seconds:.0f} s"
        return None


def reason(output):
    """The line of a failing test that says why: the one behind `panicked at`."""
    for number, line in enumerate(output):
        if PANIC.match(line):
            said = [text for text in output[number + 1:number + 3] if not text.startswith("note: ")]
            return " ".join(said)[:300] or line
    return output[-1][:300] if output else ""


class Runner:
    """Runs the tests of one binary within the time of the part."""

    def __init__(self, processes, results, log, binary, prefix=(), env=None, seconds=SECONDS, op_seconds=OP_SECONDS,
                 alone_seconds=ALONE_SECONDS):
        self.processes, self.results, self.log = processes, results, log
        self.command = [*prefix, binary]
        self.env, self.seconds = env or {}, seconds
        self.op_seconds, self.alone_seconds = op_seconds, alone_seconds
        self.hangs = {}

    def run(self, tests):
        """All tests, kind by kind and op by op."""
        for kind in KINDS:
            left = []
            for group in dict.fromkeys(test.group for test in tests):
                batch = [test for test in tests if test.group == group and test.kind == kind]
                left += [(group, self.batch(batch))] if batch else []
            for group, rest in left:
                self.one_by_one(group, rest)

    def batch(self, tests):
        """Tests of an op in one process; those that still have no result."""
        if self.gave_up(tests[0].group):
            return tests
        self.process(tests, self.op_seconds)
        return [test for test in tests if test.result is None]

    def one_by_one(self, group, tests):
        end = time.monotonic() + self.alone_seconds
        for test in tests:
            left = end - time.monotonic()
            if left > 0 and not self.gave_up(group):
                self.process([test], left)

    def gave_up(self, group):
        return self.hangs.get(group, 0) >= MOST_HANGS

    def watcher(self, tests):
        return Watcher(tests, self.seconds[tests[0].kind], self.results.test)

    def process(self, tests, seconds):
        watcher = self.watcher(tests)
        outcome = self.processes.run(
            [*self.command, "--exact", "--nocapture", "--test-threads", "1", *(test.name for test in tests)],
            self.log, seconds, watcher, self.env)
        self.judge(watcher, outcome, tests)
        return outcome

    def hung(self, watcher, group):
        self.hangs[group] = self.hangs.get(group, 0) + 1
        watcher.settle("HUNG", f"no result after {time.monotonic() - watcher.began:.0f} s")

    def judge(self, watcher, outcome, tests):
        """What the end of a process says about the test that ran then."""
        if watcher.current:
            if watcher.hung:
                self.hung(watcher, tests[0].group)
            elif outcome.stopped is None:
                watcher.settle("CRASHED", f"the process ended here: {outcome.why() or 'exit code 0'}")
        elif not watcher.done and outcome.stopped is None and outcome.code not in (0, 101):
            # It ended before its first test: nothing else can be said about them.
            for test in tests:
                self.results.test(test, "CRASHED", outcome.seconds, f"the program does not start: {outcome.why()}",
                                  outcome.text)
        elif not watcher.done and watcher.hung:
            self.hangs[tests[0].group] = MOST_HANGS
            self.results.test(tests[0], "HUNG", outcome.seconds, "the program did not come to its first test")
