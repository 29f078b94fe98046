"""What is known so far, on disk at every moment: a table to read and a line of JSON for each result.

The table is written anew after each result, to a file beside it that then takes its place. So a run that is killed leaves a table
that is true: what was done by then, and `not reached` for everything else.
"""
import json
import os
import threading
import time

TAIL = 14
MOST_LOG = 14 << 20
MARKS = {"ok": "passed", "FAILED": "failed", "HUNG": "hung", "CRASHED": "crashed", "SKIPPED": "skipped",
         "ignored": "ignored", None: "not reached"}
BAD = ("FAILED", "HUNG", "CRASHED")


def one_line(text, limit=300):
    text = " ".join(str(text).split()).replace("|", "\\|")
    return text if len(text) <= limit else text[:limit] + " ..."


def tail(text, lines=TAIL):
    """The last lines of a log, none of them too long."""
    kept = [line[:240] for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(kept)


class Log:
    """A file of the output folder that grows, up to a size that can be carried."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8", errors="replace")
        self.lock = threading.Lock()

    def write(self, text):
        with self.lock:
            if self.file.tell() < MOST_LOG:
                self.file.write(text)
                self.file.flush()


class Test:
    """A test of a part: planned, and then what came of it."""

    def __init__(self, part, name, group, kind):
        self.part, self.name, self.group, self.kind = part, name, group, kind
        self.result, self.note, self.seconds = None, "", 0.0


class Results:
    """All results of a run."""

    def __init__(self, out, version, limit, parts):
        self.out, self.version, self.limit = out, version, limit
        self.began = time.monotonic()
        self.stamp = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        self.machine = ["the device was not asked yet"]
        self.parts = {name: {"result": None, "seconds": None, "note": ""} for name in parts}
        self.tests, self.numbers, self.failures = {}, {}, []
        self.state = "running"
        self.lock = threading.RLock()
        self.lines = open(os.path.join(out, "results.jsonl"), "w", encoding="utf-8")
        self.record("run", version=version, limit_seconds=limit, parts=list(parts))

    def seconds(self):
        return time.monotonic() - self.began

    def record(self, kind, **fields):
        """One line of JSON, and the table with it."""
        with self.lock:
            line = {"at": round(self.seconds(), 2), "kind": kind, **fields}
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
            self.write()

    # ---- what the parts say ----

    def about(self, line):
        """A fact about the machine."""
        with self.lock:
            self.machine = [x for x in self.machine if "not asked yet" not in x] + [line]
        self.record("machine", text=line)

    def start(self, part):
        self.parts[part]["result"] = "running"
        self.record("start", part=part)

    def end(self, part, result, seconds, note):
        self.parts[part].update(result=result, seconds=seconds, note=note)
        self.record("part", part=part, result=result, seconds=round(seconds, 1), note=note)

    def plan(self, part, tests):
        """What is about to run; without a result it was not reached."""
        with self.lock:
            for test in tests:
                self.tests[part, test.name] = test
        self.record("plan", part=part, tests=[test.name for test in tests])

    def test(self, test, result, seconds=0.0, note="", text=""):
        with self.lock:
            test.result, test.note, test.seconds = result, note, seconds
            if result in BAD:
                self.failures.append((f"{test.part}: {test.name}", MARKS[result], note, tail(text)))
        self.record("test", part=test.part, name=test.name, op=test.group, result=result,
                    seconds=round(seconds, 2), note=note)

    def failure(self, name, note, text):
        """A failure that is no test, with the end of its log."""
        with self.lock:
            self.failures.append((name, "failed", note, tail(text)))
        self.record("failure", name=name, note=note, tail=tail(text))

    def number(self, part, title, head, row, **fields):
        """A row of a table of figures."""
        with self.lock:
            table = self.numbers.setdefault(title, (head, []))
            table[1].append([one_line(cell) for cell in row])
        self.record("number", part=part, row=row, **fields)

    def page(self, part, title, text):
        """A table that somebody else wrote, in the place of the last one with this title."""
        with self.lock:
            self.numbers[title] = text
        self.record("page", part=part, title=title)

    # ---- the table ----

    def finish(self, state):
        self.state = state
        self.record("end", state=state)

    def counts(self, part):
        """How many tests of a part came to what: {result: number}."""
        found = {}
        for (of, _), test in self.tests.items():
            if of == part:
                found[test.result] = found.get(test.result, 0) + 1
        return found

    def write(self):
        path = os.path.join(self.out, "results.md")
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(self.text())
        os.replace(path + ".new", path)

    def text(self):
        running = [name for name, part in self.parts.items() if part["result"] == "running"]
        if self.state == "running":
            state = (f"NOT COMPLETE: written after {self.seconds():.0f} of {self.limit:.0f} s"
                     f"{f', while `{running[0]}` ran' if running else ''}. What has no result here was not reached by then.")
        else:
            state = f"{self.state} after {self.seconds():.0f} of {self.limit:.0f} s."
        lines = [f"# GPU check of tanren {self.version}", "", f"{self.stamp} UTC. {state}", ""]
        lines += [f"- {one_line(line)}" for line in self.machine]
        lines += ["", "| part | result | seconds | |", "|---|---|---:|---|"]
        for name, part in self.parts.items():
            seconds = "" if part["seconds"] is None else f"{part['seconds']:.1f}"
            note = part["note"] or (summary(self.counts(name)) if part["result"] == "running" else "")
            lines.append(f"| {name} | {part['result'] or 'not reached'} | {seconds} | {one_line(note)} |")
        if self.failures:
            lines += ["", "## What failed"]
            for name, result, note, text in self.failures[:60]:
                lines += ["", f"**{one_line(name)}**: {one_line(result + (', ' + note if note else ''))}"]
                lines += ["```", text.replace("```", "'''"), "```"] if text else []
            if len(self.failures) > 60:
                lines += ["", f"And {len(self.failures) - 60} more, see results.jsonl."]
        for part in self.parts:
            lines += self.test_table(part)
        for title, table in self.numbers.items():
            lines += ["", f"## {title}", ""]
            if isinstance(table, str):
                lines.append(table)
                continue
            head, rows = table
            lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "\n"

    def test_table(self, part):
        """Tests by op, and the names of those that were not reached."""
        tests = [test for (of, _), test in self.tests.items() if of == part]
        if not tests:
            return []
        columns = ["ok", "FAILED", "HUNG", "CRASHED", "SKIPPED", None]
        columns = [c for c in columns if c in ("ok", "FAILED", None) or any(test.result == c for test in tests)]
        lines = ["", f"## Tests of `{part}`", "", "| op | " + " | ".join(MARKS[c] for c in columns) + " | seconds |",
                 "|---|" + "---:|" * (1 + len(columns))]
        for group, kind in dict.fromkeys((test.group, test.kind) for test in tests):
            of = [test for test in tests if (test.group, test.kind) == (group, kind)]
            cells = [sum(test.result == column for test in of) or "" for column in columns]
            cells.append(f"{sum(test.seconds for test in of):.1f}")
            lines.append(f"| {group}, {kind} | " + " | ".join(map(str, cells)) + " |")
        missing = [test.name for test in tests if test.result is None]
        if missing:
            lines += ["", "Not reached: " + ", ".join(f"`{name}`" for name in missing) + "."]
        return lines


def summary(counts):
    """`12 passed, 1 failed, 3 not reached`."""
    order = ["ok", "FAILED", "HUNG", "CRASHED", "SKIPPED", "ignored", None]
    return ", ".join(f"{counts[key]} {MARKS[key]}" for key in order if counts.get(key))
