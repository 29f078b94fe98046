"""Processes that end in time: each has a deadline, and nothing that it started is left when it is over.

What a process prints goes to a file, never through a pipe: a pipe would wait for everybody who holds it. The file is read while
it grows, so that a result counts from the moment its line is there.
"""
import ctypes
import itertools
import os
import signal
import subprocess
import time

# More output than this is no report any more.
MOST_OUTPUT = 3 << 20
PAUSE = 0.03


def die_with_parent():
    """In the new process: a group of its own, and the end when the runner is killed."""
    os.setpgid(0, 0)
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # Only leftovers of a killed runner are at stake.


class Outcome:
    """How a process ended."""

    def __init__(self, code, stopped, seconds, text):
        self.code = code          # negative: the signal that ended it
        self.stopped = stopped    # why the runner ended it, or None
        self.seconds = seconds
        self.text = text          # all that it printed

    @property
    def ok(self):
        return self.code == 0 and self.stopped is None

    def why(self):
        """One line for a table, or None if all was well."""
        if self.stopped:
            return self.stopped
        if self.code is not None and self.code < 0:
            try:
                return f"ended by {signal.Signals(-self.code).name}"
            except ValueError:
                return f"ended by signal {-self.code}"
        return f"exit code {self.code}" if self.code else None


class Reader:
    """Hears what a process prints. Subclasses see lines, and may stop it."""

    def line(self, text):
        """A whole line, without its end."""

    def pending(self, text):
        """The start of a line that is not complete yet."""

    def stop(self):
        """Why the process shall end now, or None."""


class Child:
    """A running process."""

    def __init__(self, command, log, scratch, env=None, cwd=None):
        self.log, self.path = log, scratch
        self.began = time.monotonic()
        self.read, self.rest = 0, b""
        self.text = []
        self.out = open(scratch, "wb")
        log.write("$ " + " ".join(map(str, command)) + "\n")
        try:
            self.process = subprocess.Popen(
                [str(x) for x in command], stdout=self.out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=env, cwd=cwd, preexec_fn=die_with_parent)
        except OSError as error:
            self.process = None
            log.write(f"{error}\n")
            self.text.append(f"{error}\n")
        self.input = open(scratch, "rb")

    def pull(self, reader):
        """Reads what is new; True if there was something."""
        data = self.input.read(1 << 20)
        if not data:
            return False
        self.read += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for raw in lines:
            text = raw.decode(errors="replace")
            self.text.append(text + "\n")
            self.log.write(text + "\n")
            reader.line(text)
        reader.pending(self.rest.decode(errors="replace"))
        return True

    def wait(self, end, reader):
        """Until it is over, by itself or because its time is up at `end`."""
        if self.process is None:
            self.close()
            return Outcome(127, None, 0.0, "".join(self.text))
        stopped = None
        while True:
            over = self.process.poll() is not None
            while self.pull(reader):
                pass
            if over:
                break
            stopped = reader.stop() or self.limits(end)
            if stopped:
                break
            time.sleep(PAUSE)
        self.kill()
        while self.pull(reader):
            pass
        if self.rest:
            text = self.rest.decode(errors="replace")
            self.text.append(text)
            self.log.write(text + "\n")
        seconds = time.monotonic() - self.began
        if stopped:
            self.log.write(f"[{stopped}, after {seconds:.1f} s]\n")
        self.close()
        return Outcome(self.process.poll(), stopped, seconds, "".join(self.text))

    def limits(self, end):
        if self.read > MOST_OUTPUT:
            return "stopped: too much output"
        if time.monotonic() >= end:
            return "out of time"
        return None

    def kill(self):
        """Ends the group: politely, then not. A process that a driver holds on to is left behind."""
        self.signal(signal.SIGTERM)
        self.reap(1.0)
        self.signal(signal.SIGKILL)
        self.reap(3.0)

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def reap(self, seconds):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def close(self):
        self.out.close()
        self.input.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass


class Processes:
    """Starts processes with the environment of this machine, and knows the end of the running part."""

    def __init__(self, work, env):
        self.work, self.env = work, env
        self.end = float("inf")
        self.running = set()
        self.numbers = itertools.count()

    def run(self, command, log, seconds=float("inf"), reader=None, env=None, cwd=None):
        """To the end, for `seconds` and what is left of the part at most."""
        now = time.monotonic()
        end = min(self.end, now + seconds)
        if end - now < 0.2:
            return Outcome(None, "out of time", 0.0, "")
        child = self.start(command, log, env, cwd)
        try:
            return child.wait(end, reader or Reader())
        finally:
            self.running.discard(child)

    def start(self, command, log, env=None, cwd=None):
        child = Child(command, log, os.path.join(self.work, f"out-{next(self.numbers)}"),
                      {**self.env, **(env or {})}, cwd or self.work)
        self.running.add(child)
        return child

    def kill_all(self):
        for child in list(self.running):
            if child.process is not None:
                child.signal(signal.SIGKILL)
