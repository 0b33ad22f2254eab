#!/usr/bin/env python3
"""Measures this engine, PyTorch, ONNX Runtime and OpenVINO side by side on this machine and prints one table.

    python3 bench/side_by_side.py                     # ResNet-20, batch 128
    python3 bench/side_by_side.py --depth 56 --rounds 5 --write docs/benchmarks.md

The contestants take turns, `--rounds` times, so that a slow spell of the machine meets all of them; the table
gives the median of the rounds and the ratio to PyTorch's default mode. The others are taken from the Python that
runs this script if it has them, else installed into target/bench-env. With --write the table replaces the
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

AVX2 = {"RESNET_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PYTORCH, ONNX = "pytorch_speed.py", "onnx_speed.py"

# Name, environment, script (None: this engine), its first arguments, its flags.
CONTESTANTS = [
    ("resnet bf16", {}, None, [], ["--precision", "bf16"]),
    ("resnet tf32", {}, None, [], ["--precision", "tf32"]),
    ("resnet f32", {}, None, [], ["--precision", "f32"]),
    ("resnet f32, AVX-512 forced", {"RESNET_ISA": "avx512"}, None, [], ["--precision", "f32"]),
    ("resnet f32, AVX2 forced", AVX2, None, [], ["--precision", "f32"]),
    ("PyTorch eager fp32 (default)", {}, PYTORCH, [], []),
    ("PyTorch eager fp32, AVX2 forced", AVX2, PYTORCH, [], []),
    ("PyTorch eager fp32, channels_last", {}, PYTORCH, [], ["--channels-last"]),
    ("PyTorch compile fp32", {}, PYTORCH, [], ["--compile"]),
    ("PyTorch compile fp32, channels_last", {}, PYTORCH, [], ["--compile", "--channels-last"]),
    ("PyTorch eager bf16, channels_last", {}, PYTORCH, [], ["--bf16", "--channels-last"]),
    ("PyTorch compile bf16", {}, PYTORCH, [], ["--compile", "--bf16"]),
    ("PyTorch compile bf16, channels_last", {}, PYTORCH, [], ["--compile", "--bf16", "--channels-last"]),
    ("ONNX Runtime fp32", {}, ONNX, ["onnxruntime"], []),
    ("OpenVINO fp32", {}, ONNX, ["openvino"], []),
    ("OpenVINO bf16", {}, ONNX, ["openvino"], ["--precision", "bf16"]),
]
BASELINE = "PyTorch eager fp32 (default)"


def with_the_others():
    """Starts over in an environment that has the others, where this one lacks one of them."""
    if all(map(importlib.util.find_spec, ("torch", "onnx", "onnxruntime", "openvino"))):
        return
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        print(f"installing PyTorch, ONNX Runtime and OpenVINO into {ENVIRONMENT}", file=sys.stderr)
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
    """One round: images a second and megabytes of training, images a second and milliseconds of one image."""
    _, environment, script, first, flags = contestant
    options = ["--threads", args.threads, "--seconds", args.seconds, *flags]
    if script is None:
        command = [ROOT / "target/release/resnet", "bench", f"cifar-resnet{args.depth}", "--json", *options]
        report = run([*command, "--batch", args.batch], environment)
        single = run([*command, "--batch", 1], environment)["inference"]
        training, inference, memory = report["training"], report["inference"], report["peak_resident_bytes"]
    else:
        command = [sys.executable, ROOT / "bench" / script, *first]
        options += ["--depth", args.depth]
        training = {} if script == ONNX else run([*command, "training", "--batch", args.batch, *options], environment)
        inference = run([*command, "inference", "--batch", args.batch, *options], environment)
        single = run([*command, "inference", "--batch", 1, *options], environment)
        memory = training.get("peak_resident_bytes")
    return {
        "training": training.get("images_per_second"),
        "memory": memory and memory / 1e6,
        "inference": inference["images_per_second"],
        "single": single["step_ms"],
    }


def machine():
    """Processor, cores and versions, in a line."""
    import onnxruntime
    import openvino
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
    others = f"PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__[:8]}"
    return f"{model} ({features}), {os.cpu_count()} cores; rustc {rustc}, {others}"


def median(rounds, what):
    values = [measured[what] for measured in rounds]
    return None if None in values else statistics.median(values)


def table(results, args):
    command = shlex.join(["python3", "bench/side_by_side.py", *sys.argv[1:]])
    lines = [
        f"ResNet-{args.depth}, batch {args.batch}, {args.threads} threads, median of the rounds ({args.rounds}),",
        f"{time.strftime('%Y-%m-%d')}; {machine()}.",
        f"`{command}`",
        "",
        "| | training img/s | ratio | peak memory MB | inference img/s | ratio | one image ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rounds in results.items():
        cells = []
        for what in ("training", "memory", "inference", "single"):
            value, base = median(rounds, what), median(results[BASELINE], what)
            cells.append("" if value is None else f"{value:.2f}" if what == "single" else f"{value:.0f}")
            if what in ("training", "inference"):
                cells.append("" if value is None else f"{value / base:.2f}")
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
    with_the_others()
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "resnet-cli"], cwd=ROOT, check=True)
    chosen = [c for c in CONTESTANTS if args.only in c[0] or c[0] == BASELINE]
    results = {contestant[0]: [] for contestant in chosen}
    for number in range(1, args.rounds + 1):
        for contestant in chosen:
            name, measured = contestant[0], measure(contestant, args)
            results[name].append(measured)
            print(f"round {number}: {name}: {json.dumps(measured)}", file=sys.stderr)
    text = table(results, args)
    print(text)
    if args.write:
        write(args.write, text, args.depth)


if __name__ == "__main__":
    main()
