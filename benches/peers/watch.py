"""The GPU from outside while a process runs: clocks, power, memory, by nvidia-smi.

Where there is no nvidia-smi there are no such numbers; nothing here needs torch.
"""
import shutil
import statistics
import subprocess


class Watch:
    """Clocks, power and memory of the GPU while a process runs."""

    FIELDS = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu",
              "memory.used", "utilization.gpu"]

    def __init__(self):
        self.child = None
        if shutil.which("nvidia-smi"):
            self.child = subprocess.Popen(
                ["nvidia-smi", f"--query-gpu={','.join(self.FIELDS)}",
                 "--format=csv,noheader,nounits", "-lms", "200"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def stop(self):
        if self.child is None:
            return {}
        self.child.terminate()
        return clocks(self.child.communicate()[0])


def clocks(text):
    """Medians over the samples in which the GPU worked."""
    samples = []
    for line in text.splitlines():
        try:
            sample = [float(x) for x in line.split(",")]
        except ValueError:
            continue  # a line that was cut off, or a field without a value
        if len(sample) == len(Watch.FIELDS):
            samples.append(dict(zip(Watch.FIELDS, sample)))
    busy = [s for s in samples if s["utilization.gpu"] > 0]
    if not busy:
        return {}
    return {"samples": len(busy),
            "memory_used_mib": max(s["memory.used"] for s in busy),
            **{key: statistics.median(s[key] for s in busy)
               for key in Watch.FIELDS if key != "memory.used"}}


def machine():
    """Name and driver of the GPU."""
    if not shutil.which("nvidia-smi"):
        return {"gpu": "none", "driver": ""}
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version",
         "--format=csv,noheader"], capture_output=True, text=True)
    first = (done.stdout.strip().splitlines() or ["unknown, "])[0]
    name, _, driver = first.partition(", ")
    return {"gpu": name, "driver": driver}


def self_test():
    text = "1500, 2619, 300.5, 50, 9000, 90\n1300, 2619, 200, 40, 8000, 0\n" \
        "1700, 2619, 310, 52, 9500, 95\nN/A\n150"
    seen = clocks(text)
    assert seen["clocks.sm"] == 1600 and seen["memory_used_mib"] == 9500
    assert seen["samples"] == 2 and clocks("") == {}
