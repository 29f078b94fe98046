"""What the runs of the GPU benchmark mean: statistics, verdicts, tables.

Pure functions over the JSON that runs leave behind; nothing here needs torch.
"""
import math
import statistics

# Dense bf16 with f32 accumulation, TFLOP/s, by a part of the GPU's name.
PEAKS = {"H200": 990.0, "H100": 990.0, "A100": 312.0, "RTX 3080": 59.5}

LOSS_LIMIT = 2e-3       # relative, step 0, bf16 against f32
COSINE_LIMIT = 0.999    # of all adapter gradients together


def order(names, rounds):
    """A B C D D C B A, `rounds` times: drifts of the machine meet all alike."""
    return [(number, name) for number in range(rounds)
            for name in [*names, *reversed(names)]]


def peak_tflops(gpu):
    return next((x for name, x in PEAKS.items() if name in gpu), None)


def shares(name):
    """Whether a setting computes tokens that rows have in common only once.

    Then tokens per second say nothing: only rows compare.
    """
    return name.endswith("-share")


def summarise(run, flops_per_token, peak, shared=False):
    """The numbers of one run: its steps after the warm-up.

    The rate is all tokens over all seconds; `step_ms` is the median step.
    """
    steps = run["steps"]
    seconds = run.get("wall_seconds") or sum(s["seconds"] for s in steps)
    tokens = sum(s["tokens"] for s in steps)
    rate = tokens / seconds
    return {
        "tokens_per_second": None if shared else rate,
        "samples_per_second": sum(s["samples"] for s in steps) / seconds,
        "step_ms": 1e3 * statistics.median(s["seconds"] for s in steps),
        "padding": 1 - tokens / sum(s.get("padded", s["tokens"])
                                    for s in steps),
        "mfu": rate * flops_per_token / (peak * 1e12)
        if peak and not shared else None,
    }


def middle(runs, key):
    """(median, smallest, largest) over the runs that have the number."""
    found = [run[key] for run in runs if run.get(key) is not None]
    if not found:
        return None
    return statistics.median(found), min(found), max(found)


def judge(gate):
    """Why a setting is not the same computation, or None if it is."""
    if gate.get("error"):
        return gate["error"]
    loss, cosine = gate.get("loss_gap"), gate.get("cosine")
    # Written so that a NaN fails.
    if loss is None or not loss <= LOSS_LIMIT:
        return f"loss of step 0 differs by {loss} (limit {LOSS_LIMIT})"
    if cosine is None or not cosine >= COSINE_LIMIT:
        return f"gradient cosine {cosine} (limit {COSINE_LIMIT})"
    return None


def gap(got, want):
    return abs(got - want) / abs(want) if want else math.inf


def curve_gap(got, want):
    """Largest relative difference of two loss curves; NaN counts."""
    gaps = [gap(a, b) for a, b in zip(got, want)]
    if len(got) != len(want) or not gaps:
        return math.inf
    return math.inf if any(math.isnan(x) for x in gaps) else max(gaps)


def number(value, digits=0, factor=1, unit=""):
    return "" if value is None else f"{factor * value:,.{digits}f}{unit}"


def table(results):
    """The Markdown table of a workload, fastest first, failures below.

    `results`: {setting: {"runs": [...], "gate": {...}, "error": text}}.
    """
    lines = ["| setting | samples/s | tokens/s | slowest - fastest | step, ms |"
             " MFU | GPU busy | kernels/step | peak allocated / reserved, GiB |"
             " first step, s | padding | tanren's speed |",
             "|---|" + "---:|" * 11]
    rates = {name: middle(result["runs"], "samples_per_second")
             for name, result in results.items()}
    own = rates.get("tanren")
    for name in sorted((n for n in rates if rates[n]),
                       key=lambda n: -rates[n][0]):
        runs, rate = results[name]["runs"], rates[name]
        gib = 1 / 2 ** 30

        def cell(key, digits=0, factor=1, unit=""):
            found = middle(runs, key)
            return number(found[0] if found else None, digits, factor, unit)
        memory = " / ".join(x for x in (cell("peak_allocated", 2, gib),
                                        cell("peak_reserved", 2, gib)) if x)
        tokens = middle(runs, "tokens_per_second")
        spread = f"{number(tokens[1])} - {number(tokens[2])}" if tokens else ""
        against = "" if own is None or name.startswith("tanren") \
            else f"{own[0] / rate[0]:.2f} x"
        lines.append("| " + " | ".join([
            name, number(rate[0], 1), cell("tokens_per_second"), spread,
            cell("step_ms", 2), cell("mfu", 1, 100, " %"),
            cell("busy", 0, 100, " %"), cell("kernels_per_step"), memory,
            cell("first_step_seconds", 1), cell("padding", 1, 100, " %"),
            against]) + " |")
    failed = [(name, failure(result)) for name, result in results.items()]
    failed = [(name, why) for name, why in failed if why]
    if failed:
        lines += ["", "| not measured, or not to the end | why |", "|---|---|"]
        lines += [f"| {name} | {one_line(why)} |" for name, why in failed]
    return "\n".join(lines)


def failure(result):
    """Why a setting has no runs or fewer than it should, or None."""
    runs, why = len(result["runs"]), result.get("error")
    if runs and why:
        return f"after {runs} run{'s' * (runs > 1)}: {why}"
    return why or (None if runs else "no run ended")


def gate_table(results):
    """The Markdown table of the correctness gate."""
    lines = ["| setting | loss of step 0 | gradient cosine | worst tensor |"
             " loss curve | verdict |", "|---|---:|---:|---:|---:|---|"]
    for name, result in results.items():
        gate = result.get("gate")
        if gate is None:
            continue

        def cell(key, form):
            value = gate.get(key)
            return "" if value is None else format(value, form)
        verdict = judge(gate)
        lines.append(
            f"| {name} | {cell('loss_gap', '.1e')} | {cell('cosine', '.6f')} |"
            f" {cell('worst_cosine', '.6f')} | {cell('curve_gap', '.1e')} |"
            f" {'ok' if verdict is None else one_line(verdict)} |")
    return "\n".join(lines)


def bar_table(bars):
    """The Markdown table of what bars.py wrote."""
    lines = ["| bar | shape | ms | TFLOP/s | GB/s |", "|---|---|---:|---:|---:|"]
    for bar in bars:
        shape = ", ".join(f"{key} {value}"
                          for key, value in bar["shape"].items())
        numbers = [number(bar.get("ms"), 3), number(bar.get("tflops"), 1),
                   number(bar.get("gb_per_s"))]
        if bar.get("error"):
            numbers = [one_line(bar["error"], 80), "", ""]
        lines.append("| " + " | ".join([bar["bar"], shape, *numbers]) + " |")
    return "\n".join(lines)


def one_line(text, limit=300):
    text = " ".join(str(text).split()).replace("|", "\\|")
    return text if len(text) <= limit else text[:limit] + " ..."


def self_test():
    assert order("AB", 2) == [(0, "A"), (0, "B"), (0, "B"), (0, "A"),
                              (1, "A"), (1, "B"), (1, "B"), (1, "A")]
    assert peak_tflops("NVIDIA H200") == 990.0
    assert peak_tflops("another") is None

    step = {"tokens": 100, "padded": 125, "samples": 2}
    run = {"steps": [{**step, "seconds": x} for x in (0.1, 0.1, 0.3)]}
    got = summarise(run, 2e9, 1.0)
    assert math.isclose(got["tokens_per_second"], 600)
    assert math.isclose(got["samples_per_second"], 12)
    assert math.isclose(got["step_ms"], 100)
    assert math.isclose(got["padding"], 0.2)
    assert math.isclose(got["mfu"], 1.2)
    # The wall clock, where there is one, has the last word.
    wall = summarise({**run, "wall_seconds": 1.0}, 2e9, None)
    assert math.isclose(wall["tokens_per_second"], 300) and wall["mfu"] is None
    assert shares("tanren-share") and not shares("tanren")
    shared = summarise(run, 2e9, 1.0, True)
    assert shared["tokens_per_second"] is shared["mfu"] is None
    assert math.isclose(shared["samples_per_second"], 12)

    good = {"loss_gap": 1e-4, "cosine": 0.9999}
    assert judge(good) is None
    for bad in ({"loss_gap": 3e-3}, {"cosine": 0.99}, {"cosine": math.nan},
                {"loss_gap": math.nan}, {"loss_gap": None}, {"error": "died"}):
        assert judge({**good, **bad}), bad
    assert math.isclose(curve_gap([1.0, 2.2], [1.0, 2.0]), 0.1)
    assert curve_gap([1.0], [1.0, 2.0]) == curve_gap([math.nan], [1.0]) \
        == math.inf

    results = {
        "hf": {"runs": [{**got, "peak_allocated": 2 ** 31, "busy": 0.5},
                        {**got, "tokens_per_second": 500.0,
                         "samples_per_second": 10.0}], "gate": good},
        "tanren": {"runs": [{**got, "tokens_per_second": 1100.0,
                             "samples_per_second": 22.0}],
                   "gate": {"error": "a\n|b"}},
        "tanren-share": {"runs": [{**shared, "samples_per_second": 30.0}]},
        "liger": {"runs": [{**got, "samples_per_second": 9.0}],
                  "error": "died"},
        "trl": {"runs": [], "error": "not installed: trl"},
        "unsloth": {"runs": []}}
    lines = table(results).splitlines()
    assert lines[2].startswith("| tanren-share | 30.0 |  |  | 100.00 |  |")
    assert lines[3].startswith("| tanren | 22.0 | 1,100 |"), lines[3]
    assert lines[2].endswith("|  |") and lines[3].endswith("|  |")
    assert lines[4].startswith("| hf | 11.0 | 550 | 500 - 600 |"), lines[4]
    # Against tanren without the sharing.
    assert "| 50 % |" in lines[4] and lines[4].endswith("| 2.00 x |")
    assert lines[-3:] == ["| liger | after 1 run: died |",
                          "| trl | not installed: trl |",
                          "| unsloth | no run ended |"]
    widths = {line.count("|") for line in lines[:5]}
    assert widths == {13}, widths
    gates = gate_table(results).splitlines()
    assert gates[2].endswith("| ok |") and gates[3].endswith("| a \\|b |")
    assert len(gates) == 4

    bars = bar_table([
        {"bar": "mm", "shape": {"rows": 8, "in": 4}, "ms": 0.5, "tflops": 2.0},
        {"bar": "sdpa", "shape": {"rows": 8}, "error": "no\nkernel"}])
    assert bars.splitlines()[2:] == ["| mm | rows 8, in 4 | 0.500 | 2.0 |  |",
                                     "| sdpa | rows 8 | no kernel |  |  |"]
