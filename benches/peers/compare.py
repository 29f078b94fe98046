#!/usr/bin/env python3
"""tanren against transformers + PEFT: same model, rows, start and threads.

    python compare.py --tanren ../../target/release/tanren --model DIR
        --rows rows_direct.jsonl [--rows rows_full.jsonl] [--steps 4]
        [--rounds 3] [--json OUT.json]

Run it with the Python of the benchmark's virtual environment. PEFT runs twice:
all rows of a step in one padded batch, and one row at a time with gradient
accumulation (no padding, less memory). The sides run in turn (A B C A B C
...), one process per run. Speed is real tokens (padding never counts) per
second of a step, the median over the steps after the first; peak RSS is what
the kernel reports for the whole process. All sides start from one adapter and
the losses must agree at every step. Exits 1 if they do not, 2 if a run fails.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# No torch here: on Linux a child's peak RSS begins at its parent's.
HERE = Path(__file__).resolve().parent
RATE, DECAY = "1e-4", "0.01"


def run(command, log, env=None):
    """Run to the end; returns (seconds, peak RSS in GB)."""
    began = time.perf_counter()
    with open(log, "w") as out:
        child = subprocess.Popen([str(x) for x in command], stdout=out,
                                 stderr=subprocess.STDOUT,
                                 env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        print(f"{command[0]} failed ({child.returncode}):\n{tail}",
              file=sys.stderr)
        sys.exit(2)
    return seconds, usage.ru_maxrss * 1024 / 1e9


def run_tanren(args, rows, out, adapter, _micro):
    seconds, rss = run(
        [args.tanren, "train", "--model", args.model, "--train-file", rows,
         "--output-dir", out, "--task", "causal", "--device", "cpu",
         "--dtype", "f32", "--batch-size", args.batch_size,
         "--gradient-accumulation-steps", 1, "--max-steps", args.steps,
         "--shuffle", "false", "--lora-r", args.r, "--lora-alpha", 2 * args.r,
         "--lora-dropout", 0, "--target-modules", "all-linear",
         "--init-adapter", adapter, "--learning-rate", RATE,
         "--lr-scheduler", "constant", "--weight-decay", DECAY,
         "--max-grad-norm", "1.0", "--logging-steps", 1,
         "--threads", args.threads, *args.tanren_arg], Path(f"{out}.log"))
    with open(out / "training_log.jsonl") as lines:
        steps = [s for s in map(json.loads, lines) if "loss" in s]
    return {"steps": steps, "seconds": seconds, "rss": rss}


def run_peft(args, rows, out, adapter, micro):
    log = Path(f"{out}.log")
    seconds, rss = run(
        [sys.executable, HERE / "train_peft.py", "--model", args.model,
         "--rows", rows, "--steps", args.steps, "--init-adapter", adapter,
         "--batch-size", args.batch_size, "--micro-batch-size", micro,
         "--threads", args.threads, "--learning-rate", RATE,
         "--weight-decay", DECAY],
        log, {"OMP_NUM_THREADS": str(args.threads)})
    result = json.loads(log.read_text().splitlines()[-1])
    return {"steps": result["steps"], "seconds": seconds, "rss": rss,
            "versions": result["versions"]}


def speeds(steps, tokens):
    """Real tokens per second of each step after the first."""
    pairs = list(zip(steps, tokens))
    return [n / s["step_seconds"] for s, n in pairs[1:] or pairs]


def peer_name(batch_size, micro):
    return f"PEFT batch {micro} GA {-(-batch_size // micro)}"


def compare(args, rows, work, adapter):
    sides = {"tanren": (run_tanren, None)}
    for micro in sorted({1, args.batch_size}, reverse=True):
        sides[peer_name(args.batch_size, micro)] = (run_peft, micro)
    runs = {name: [] for name in sides}
    for i in range(args.rounds):
        for name, (start, micro) in sides.items():
            print(f"{rows.name}: round {i + 1} of {args.rounds}, {name}",
                  file=sys.stderr)
            out = work / f"{rows.stem}-{name.replace(' ', '')}-{i}"
            runs[name].append(start(args, rows, out, adapter, micro))
    first = runs[peer_name(args.batch_size, args.batch_size)][0]
    peer = first["steps"]
    tokens = [s["tokens"] for s in peer]
    table = {}
    for name, results in runs.items():
        each = [statistics.median(speeds(r["steps"], tokens)) for r in results]
        gap = {"loss": 0.0, "grad_norm": 0.0}
        for result in results:
            if len(result["steps"]) != len(peer):
                print(f"{name} logged {len(result['steps'])} steps instead of "
                      f"{len(peer)}", file=sys.stderr)
                sys.exit(2)
            for mine, want in zip(result["steps"], peer):
                for key in gap:
                    x = abs(mine[key] - want[key]) / abs(want[key])
                    gap[key] = x if not x <= gap[key] else gap[key]
        table[name] = {
            "tokens_per_second": statistics.median(each),
            "slowest": min(each), "fastest": max(each),
            "peak_rss_gb": statistics.median(r["rss"] for r in results),
            "process_seconds": statistics.median(r["seconds"]
                                                 for r in results),
            "loss_gap": gap["loss"], "grad_norm_gap": gap["grad_norm"]}

    for result in runs["tanren"]:
        real = speeds(result["steps"], tokens)
        for step, x in zip(result["steps"][1:], real):
            own = step.get("tokens_per_second", x)
            if abs(own - x) > 0.02 * x:
                print(f"note: tanren logs {own:.1f} tokens/s where its step "
                      f"time gives {x:.1f}", file=sys.stderr)
                break
    return {"rows": rows.name, "steps": args.steps, "rounds": args.rounds,
            "threads": args.threads, "batch_size": args.batch_size,
            "tokens_per_step": statistics.mean(tokens),
            "padding": 1 - sum(tokens) / sum(s["padded_tokens"] for s in peer),
            "sides": table, "versions": first["versions"]}


def show(result, tolerance):
    sides = result["sides"]
    mine = sides["tanren"]
    print(f"\n{result['rows']}: {result['steps']} steps of "
          f"{result['batch_size']} rows ({result['tokens_per_step']:.0f} "
          f"tokens), {result['threads']} threads, {result['rounds']} rounds; "
          f"the padded batch is {100 * result['padding']:.1f}% padding")
    print("| | tokens/s | slowest - fastest | peak RSS, GB | whole process, s |"
          " tanren: speed | memory | time |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, x in sides.items():
        ratios = ["", "", ""] if x is mine else [
            f"{mine[k] / x[k]:.2f} x" for k in
            ("tokens_per_second", "peak_rss_gb", "process_seconds")]
        print(f"| {name} | {x['tokens_per_second']:.1f} | {x['slowest']:.1f} - "
              f"{x['fastest']:.1f} | {x['peak_rss_gb']:.2f} | "
              f"{x['process_seconds']:.1f} | {' | '.join(ratios)} |")
    good = mine["loss_gap"] <= tolerance
    print(f"losses of tanren and PEFT: largest relative difference "
          f"{mine['loss_gap']:.1e} (limit {tolerance:.0e}), "
          f"{'ok' if good else 'DIFFERENT'}; "
          f"grad_norm {mine['grad_norm_gap']:.1e}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tanren", type=Path,
                        default=HERE / "../../target/release/tanren")
    parser.add_argument("--tanren-arg", action="append", default=[],
                        help="one more argument for tanren train "
                             "(--tanren-arg=--flag; may be repeated)")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--work", type=Path, help="keep logs and adapters here")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        # A folder of its own for each call: no run meets older output.
        if args.work:
            args.work.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="compare-",
                                     dir=args.work or temporary))
        adapter = work / "adapter_init"
        run([sys.executable, HERE / "make_adapter.py", args.model, adapter,
             "--r", args.r, "--alpha", 2 * args.r], work / "make_adapter.log")
        results = [compare(args, rows, work, adapter) for rows in args.rows]
    good = [show(result, args.tolerance) for result in results]
    print("\nversions:", ", ".join(f"{k} {v}" for k, v in
                                   results[0]["versions"].items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
