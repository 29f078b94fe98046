#!/usr/bin/env python3
"""Shows what the inner loop of a kernel is made of, and what limits it, from its machine code.

    scripts/sass-report.py lora_matmul_fwd_bf16 [sm_86]

Compiles the kernel's file as the build does (nvcc, then ptxas 12.8 if it is there), disassembles it with nvdisasm
(`scripts/setup-nvcc.sh --sass` installs all) and looks at the innermost loop with the most tensor core instructions, or the
longest one if there are none. No GPU is needed. What comes out is a bound, not a prediction: it knows how long instructions
occupy issue slots and pipes, and nothing about latencies, bank conflicts and caches. A loop far below its tensor limit here
cannot reach it on a GPU; one at 100% still has to hide latencies.

Model of a multiprocessor: four schedulers, each issues one instruction a cycle and has one tensor core and its own arithmetic
pipes; shared memory serves all four with 128 bytes a cycle. A warp on each scheduler is taken, all of them in the same loop.
"""

import argparse
import collections
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Cycles that one HMMA.16816.F32 (2048 multiply-adds) occupies a tensor core, from the peak rates of NVIDIA's data sheets:
# sm_80 1024 multiply-adds per cycle and multiprocessor, sm_86, sm_89 and sm_120 256 on GeForce (512 on RTX A, L and PRO cards:
# pass 16).
# sm_90 has twice the rate of sm_80, but only for wgmma; that mma.sync stays at that of sm_80 is an assumption.
HMMA_CYCLES = {"sm_80": 8, "sm_86": 32, "sm_89": 32, "sm_90": 8, "sm_120": 32}

SCHEDULERS = 4

# Groups of instructions: name, pattern of the start, cycles in the group's pipe per warp (programming guide, throughput of
# arithmetic instructions: 16 lanes are 2 cycles, 4 lanes are 8), name of the pipe. The first match counts.
GROUPS = [
    ("padding, never executed", r"@!U?PT ", 0, ""),
    ("BAR, DEPBAR", r"BAR|DEPBAR|LDGDEPBAR|WARPSYNC|MEMBAR", 0, ""),
    ("HMMA", r"HMMA", 0, "tensor"),
    ("LDSM", r"LDSM", 0, "shared"),
    ("LDS, STS", r"LDS|STS", 0, "shared"),
    ("LDGSTS", r"LDGSTS", 0, "shared"),
    ("LDG, STG", r"LDG|STG|LD\.|ST\.|LDC|RED|ATOM", 0, ""),
    ("LDL, STL (spills, stack)", r"LDL|STL", 0, ""),
    ("FFMA, FADD, FMUL", r"FFMA|FADD|FMUL", 1, "fma"),
    ("IMAD", r"IMAD", 2, "fma"),
    ("IADD, LEA", r"V?IADD|LEA|IABS", 2, "alu"),
    ("LOP, SHF, PRMT", r"LOP|SHF|PRMT|SEL|FMNMX|IMNMX|F2FP|ISETP|FSETP|PLOP|MOV(?!M)|VOTE|POPC|FLO", 2, "alu"),
    ("MUFU, conversions", r"MUFU|I2F|F2I|F2F", 8, "xu"),
    ("SHFL", r"SHFL", 0, "shared"),
    ("BRA", r"BRA|BRX|JMP|EXIT|RET|CALL|BSSY|BSYNC|BREAK", 0, ""),
    ("uniform", r"U[A-Z]|R2UR|S2UR", 0, ""),
    ("other", r"", 0, ""),
]

Instruction = collections.namedtuple("Instruction", "address text name")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("symbol", help="kernel, as in kernels/README.md")
    parser.add_argument("arch", nargs="?", default="sm_86", choices=sorted(HMMA_CYCLES))
    parser.add_argument("--hmma-cycles", type=int, help="cycles of one HMMA.16816 on its tensor core")
    parser.add_argument("--steps", type=int, help="k16-steps of one iteration (default: HMMA per accumulator)")
    parser.add_argument("--loop", type=int, help="number of the loop in the list (default: see above)")
    parser.add_argument("--listing", action="store_true", help="print the instructions of the loop, too")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        code, labels = parse(disassemble(options.symbol, options.arch, pathlib.Path(folder)), options.symbol)
    found = loops(code, labels)
    if not found:
        sys.exit(f"{options.symbol} has no loop on {options.arch}: {len(code)} instructions in a line")
    chosen = main_loop(found) if options.loop is None else options.loop
    if not 0 <= chosen < len(found):
        sys.exit(f"there are the loops 0 to {len(found) - 1}")
    print(f"{options.symbol} on {options.arch}: {len(code)} instructions, {len(found)} loops")
    for number, body in enumerate(found):
        mark = "->" if number == chosen else "  "
        span = f"0x{body[0].address:05x} to 0x{body[-1].address:05x}"
        print(f"  {mark} loop {number}: {span}, {len(body)} instructions, {count(body, 'HMMA')} HMMA")
    report(found[chosen], options.hmma_cycles or HMMA_CYCLES[options.arch], options.steps)
    if options.listing:
        print()
        for instruction in found[chosen]:
            print(f"  0x{instruction.address:05x}  {instruction.text}")


def disassemble(symbol, arch, folder):
    """The text of nvdisasm for the file that holds the kernel."""
    line = re.compile(rf"^KERNEL\(\s*{re.escape(symbol)}\s*,", re.MULTILINE)
    sources = [path for path in sorted((ROOT / "kernels").glob("*.cu")) if line.search(path.read_text())]
    if not sources:
        sys.exit(f"no KERNEL({symbol}, ...) in kernels/*.cu")
    cubin = folder / "kernel.cubin"
    # As build/nvcc.rs and build/ptx.rs.
    ptx = folder / "kernel.ptx"
    flags = ["-std=c++17", "-O3", "-fmad=false", "-arch=compute_80", "--ptx", "-x", "cu"]
    subprocess.run([tool("nvcc"), *flags, "-o", ptx, sources[0]], check=True)
    text = re.sub(r"(?m)^\.version .*$", ".version 7.8", ptx.read_text())
    ptx.write_text(re.sub(r'(?m)^.*\.pragma "used_bytes_mask .*\n', "", text))
    pinned = ROOT / ".cuda" / "bin" / "ptxas-12.8"
    ptxas = pinned if pinned.exists() else tool("ptxas")
    subprocess.run([ptxas, "-m64", "-fmad=false", f"-arch={arch}", "-o", cubin, ptx], check=True)
    listing = subprocess.run([tool("nvdisasm"), "-c", cubin], check=True, capture_output=True, text=True)
    return listing.stdout


def tool(name):
    own = ROOT / ".cuda" / "bin" / name
    path = own if own.exists() else shutil.which(name)
    return path or sys.exit(f"{name} is missing; scripts/setup-nvcc.sh --sass installs it")


def parse(listing, symbol):
    """The instructions of a kernel in their order, and the address behind each label."""
    code, labels, inside, waiting = [], {}, False, []
    for line in listing.splitlines():
        if line.startswith(".text."):
            inside = line == f".text.{symbol}:"
        elif inside and (label := re.match(r"^(\.L_\w+):", line)):
            waiting.append(label.group(1))
        elif inside and (match := re.match(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line)):
            address, text = int(match.group(1), 16), match.group(2).strip("{} ")
            labels.update((label, address) for label in waiting)
            waiting.clear()
            # A false predicate stays part of the name: such an instruction takes a slot and does nothing.
            name = re.sub(r"^@!?U?P\d\s+", "", text)
            name = name if name.startswith("@") else name.split()[0]
            code.append(Instruction(address, text, name))
    if not code:
        sys.exit(f"nvdisasm shows no code of {symbol}")
    return code, labels


def loops(code, labels):
    """Bodies of loops: from the target of a branch backwards to the branch. The branch to itself behind the end is none."""
    found = {}
    for instruction in code:
        target = re.search(r"`\((\.L_\w+)\)", instruction.text)
        if instruction.name.startswith("BRA") and target and labels.get(target.group(1), 1 << 60) < instruction.address:
            start = labels[target.group(1)]
            body = [other for other in code if start <= other.address <= instruction.address]
            # Several branches to one start (`continue`): the longest is the loop.
            if len(body) > len(found.get(start, [])):
                found[start] = body
    return [found[start] for start in sorted(found)]


def main_loop(found):
    """The innermost loop with the most HMMA; without any, the longest innermost loop."""

    def holds_another(body):
        wanted = any(count(other, "HMMA") for other in found)
        inner = [o for o in found if o is not body and body[0].address <= o[0].address and o[-1].address <= body[-1].address]
        return any(count(other, "HMMA") or not wanted for other in inner)

    numbers = [number for number, body in enumerate(found) if not holds_another(body)]
    return max(numbers, key=lambda number: (count(found[number], "HMMA"), len(found[number])))


def count(body, prefix):
    return sum(instruction.name.startswith(prefix) for instruction in body)


def report(body, hmma_cycles, steps):
    """Prints the mix of instructions and the cycles of each limit."""
    mix, pipes = collections.Counter(), collections.Counter()
    for instruction in body:
        name, _, cycles, pipe = next(group for group in GROUPS if re.match(group[1], instruction.name))
        mix[name] += 1
        if pipe == "tensor":
            pipes[pipe] += hmma_cycles * shape(instruction.name)
        elif pipe == "shared":
            pipes[pipe] += SCHEDULERS * wavefronts(instruction.name)
        elif pipe:
            pipes[pipe] += cycles
    hmma = count(body, "HMMA")
    accumulators = set(re.findall(r"^HMMA\S* (R\d+)", "\n".join(i.text for i in body), re.MULTILINE))
    steps = steps or (max(1, round(hmma / len(accumulators))) if hmma else 1)

    print(f"\n  {'instructions':26}{'iteration':>10}" + (f"{'k16-step':>10}{'per HMMA':>10}" if hmma else ""))
    for name, *_ in GROUPS:
        if mix[name]:
            print(f"  {name:26}{mix[name]:10}" + (f"{mix[name] / steps:10.1f}{mix[name] / hmma:10.2f}" if hmma else ""))
    total = len(body)
    print(f"  {'all':26}{total:10}" + (f"{total / steps:10.1f}{total / hmma:10.2f}" if hmma else ""))

    limits = [
        ("issue slots", total),
        ("tensor cores", pipes["tensor"]),
        ("shared memory", pipes["shared"]),
        ("integer and logic pipe", pipes["alu"]),
        ("multiply-add pipe", pipes["fma"]),
        ("special functions", pipes["xu"]),
    ]
    longest = max(cycles for _, cycles in limits)
    print(f"\n  {'cycles of an iteration':26}{'cycles':>10}{'busy':>10}")
    for name, cycles in limits:
        print(f"  {name:26}{cycles:10}{cycles / longest:10.0%}")
    if hmma:
        share = pipes["tensor"] / longest
        print(f"\n  at most {share:.0%} of the tensor limit ({hmma_cycles} cycles per HMMA.16816 assumed, no stalls)")


def shape(name):
    """Work of an HMMA relative to 16816."""
    return 0.5 if ".1688." in name else 1


def wavefronts(name):
    """Cycles of the shared memory, without bank conflicts: 128 bytes each."""
    if name.startswith("LDSM"):
        return int(name.rsplit(".", 1)[-1]) if name.rsplit(".", 1)[-1].isdigit() else 1
    if ".128" in name:
        return 4
    return 2 if ".64" in name else 1


if __name__ == "__main__":
    main()
