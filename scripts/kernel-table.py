#!/usr/bin/env python3
"""Writes the table of registers and occupancy in docs/kernels.md, for both compilers.

    scripts/kernel-table.py            prints the table
    scripts/kernel-table.py --write    puts it into docs/kernels.md

Takes the PTX of the newest build below target/ and both ptxas of .cuda/bin (`scripts/setup-nvcc.sh`), and compiles for every
architecture, which takes about a minute. Shared memory and threads are those of kernels/README.md. No GPU is needed.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The ptxas of the program first.
COMPILERS = ["ptxas-12.8", "ptxas"]

# Warps, blocks and KiB of shared memory of a multiprocessor, as in src/device/arch.rs.
LIMITS = {80: (64, 32, 164), 86: (48, 16, 100), 89: (48, 24, 100), 90: (64, 32, 228), 120: (48, 24, 100)}

DOCUMENT = ROOT / "docs" / "kernels.md"
BEGIN = "<!-- Written by scripts/kernel-table.py. -->\n"
END = "<!-- End of the table. -->\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the table of docs/kernels.md")
    options = parser.parse_args()
    built = sorted(ROOT.glob("target/*/build/tanren-*/out/kernels.ptx"), key=lambda path: path.stat().st_mtime)
    if not built:
        sys.exit("no kernels.ptx below target/: build first")
    jobs = [(name, arch) for name in COMPILERS for arch in LIMITS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = list(pool.map(lambda job: compile_ptx(*job, built[-1]), jobs))
    text = table(dict(zip(jobs, logs)), budgets())
    if not options.write:
        print(text, end="")
        return
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + text + END + rest.split(END)[1])


def compile_ptx(name, arch, ptx):
    """Registers and static shared memory by kernel."""
    command = [ROOT / ".cuda" / "bin" / name, "-v", "-m64", "-fmad=false", f"-arch=sm_{arch}", "-o", os.devnull, ptx]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part.split("'")[0]
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack.*?(\d+) bytes.*?(\d+) bytes", part).groups())
        if stack or stores or loads:
            sys.exit(f"{symbol} by {name} for sm_{arch}: {stack} bytes of stack, {stores + loads} bytes of spills")
        smem = re.search(r"(\d+) bytes smem", part.split("Compile time")[0])
        found[symbol] = int(re.search(r"Used (\d+) registers", part)[1]), int(smem[1]) if smem else 0
    return found


def budgets():
    """Threads and shared memory by kernel, in the order of kernels/README.md."""
    cells = (line.split("|") for line in (ROOT / "kernels" / "README.md").read_text().splitlines())
    rows = (row for row in cells if len(row) == 9 and row[4].strip().isdigit())
    return {row[1].strip(" `"): (int(row[4]), int(row[6])) for row in rows}


def table(usages, rows):
    heads = [f"sm_{arch}" for arch in LIMITS]
    text = f"| kernel | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}\n"
    for symbol, (threads, smem) in rows.items():
        cells = []
        for arch in LIMITS:
            uses = [usages[name, arch][symbol] for name in COMPILERS]
            registers = [str(registers) for registers, _ in uses]
            blocks = [str(occupancy(arch, threads, registers, max(smem, static))) for registers, static in uses]
            cells.append(" x ".join("/".join(dict.fromkeys(numbers)) for numbers in (blocks, registers)))
        text += f"| `{symbol}` | {' | '.join(cells)} |\n"
    return text


def occupancy(arch, threads, registers, smem):
    """Blocks on a multiprocessor, as in src/device/arch.rs."""
    max_warps, max_blocks, kib = LIMITS[arch]
    warps, per_warp = -(-threads // 32), -(-32 * registers // 256) * 256
    if per_warp * -(-warps // 4) * 4 > 65536:
        return 0
    by_smem = (kib << 10) // (-(-(smem + 1024) // 128) * 128)
    return min(max_blocks, max_warps // warps, 4 * (16384 // per_warp) // warps, by_smem)


if __name__ == "__main__":
    main()
