#!/usr/bin/env python3
"""Measures this engine and PyTorch side by side on this machine and prints one table.

    python3 bench/side_by_side.py                     # ResNet-20, batch 128
    python3 bench/side_by_side.py --depth 56 --rounds 5 --write docs/benchmarks.md

The contestants take turns, `--rounds` times, so that a slow spell of the machine meets all of them; the table
gives the median of the rounds and the ratio to PyTorch's default mode. PyTorch is taken from the Python that
runs this script if it has it, else installed into target/bench-env. With --write the table replaces the
section between the markers of that file.
"""

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "target" / "bench-env"

# Name, environment, arguments to pytorch_speed.py (None: this engine).
CONTESTANTS = [
    ("resnet f32", {}, None),
    ("resnet f32, AVX2 forced", {"RESNET_ISA": "avx2"}, None),
    ("PyTorch eager fp32 (default)", {}, []),
    ("PyTorch eager fp32, channels_last", {}, ["--channels-last"]),
    ("PyTorch compile fp32, channels_last", {}, ["--compile", "--channels-last"]),
    ("PyTorch eager bf16, channels_last", {}, ["--bf16", "--channels-last"]),
    ("PyTorch compile bf16, channels_last", {}, ["--compile", "--bf16", "--channels-last"]),
]
BASELINE = "PyTorch eager fp32 (default)"
JOBS = ("training", "inference")


def with_torch():
    """Starts over in an environment that has PyTorch, where this one has none."""
    if importlib.util.find_spec("torch"):
        return
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"installing PyTorch into {ENVIRONMENT}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        requirements = ROOT / "bench" / "requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    os.execv(python, [python, *sys.argv])


def run(command, environment):
    """The JSON a command prints."""
    command = list(map(str, command))
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout)


def measure(contestant, args):
    """Images a second in training and inference, in one round."""
    _, environment, flags = contestant
    options = ["--batch", args.batch, "--threads", args.threads, "--seconds", args.seconds]
    if flags is None:
        command = [ROOT / "target/release/resnet", "bench", f"cifar-resnet{args.depth}", "--json", *options]
        report = run(command, environment)
        return [report[job]["images_per_second"] for job in JOBS]
    script = [sys.executable, ROOT / "bench/pytorch_speed.py"]
    options += ["--depth", args.depth, *flags]
    return [run([*script, job, *options], environment)["images_per_second"] for job in JOBS]


def machine():
    """Processor, cores and versions, in a line."""
    import torch

    model, features = platform.processor() or platform.machine(), "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
        model = fields.get("model name", model)
        flags = fields.get("flags", "").split()
        features = ", ".join(name for name in ("avx2", "avx512f", "amx_bf16") if name in flags)
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.split()[1]
    return f"{model} ({features}), {os.cpu_count()} cores; rustc {rustc}, PyTorch {torch.__version__}"


def table(results, args):
    medians = {name: [statistics.median(job) for job in zip(*rounds)] for name, rounds in results.items()}
    base = medians[BASELINE]
    command = shlex.join(["python3", "bench/side_by_side.py", *sys.argv[1:]])
    lines = [
        f"ResNet-{args.depth}, batch {args.batch}, {args.threads} threads, median of {args.rounds} rounds,",
        f"{time.strftime('%Y-%m-%d')}; {machine()}.",
        f"`{command}`",
        "",
        "| | training img/s | ratio | inference img/s | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, speeds in medians.items():
        cells = (f"{speed:.0f} | {speed / reference:.2f}" for speed, reference in zip(speeds, base))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path, text, depth):
    """Replaces the section between the markers of `path`."""
    begin, end = f"<!-- side_by_side {depth} -->", f"<!-- end {depth} -->"
    page = path.read_text()
    if begin not in page or end not in page:
        sys.exit(f"{path}: expected the markers {begin} and {end}")
    before, rest = page.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="6n+2")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--only", default="", help="contestants whose name contains this, and the baseline")
    parser.add_argument("--write", type=Path, help="file whose section to replace")
    args = parser.parse_args()
    with_torch()
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "resnet-cli"], cwd=ROOT, check=True)
    chosen = [c for c in CONTESTANTS if args.only in c[0] or c[0] == BASELINE]
    results = {contestant[0]: [] for contestant in chosen}
    for number in range(1, args.rounds + 1):
        for contestant in chosen:
            name, speeds = contestant[0], measure(contestant, args)
            results[name].append(speeds)
            summary = ", ".join(f"{speed:.0f} img/s {job}" for speed, job in zip(speeds, JOBS))
            print(f"round {number}: {name}: {summary}", file=sys.stderr)
    text = table(results, args)
    print(text)
    if args.write:
        write(args.write, text, args.depth)


if __name__ == "__main__":
    main()
