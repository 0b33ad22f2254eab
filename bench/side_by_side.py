#!/usr/bin/env python3
"""Measures this engine, PyTorch, ONNX Runtime and OpenVINO side by side on this machine and prints one table.

    python3 bench/side_by_side.py                     # ResNet-20, batch 128
    python3 bench/side_by_side.py --depth 56 --rounds 15 --write docs/benchmarks.md

All contestants of a job (training, inference, inference of one image) are started and warmed up first. Then they take
turns, `--rounds` times, a second or so each, so that a slow spell of the machine meets all of them; who waits
for its turn sleeps. The table gives the median of the rounds, its ratio to that of PyTorch's default mode, and for
training the fastest round too, which is how a machine is with nobody else on it. The others are taken from the Python
that runs this script if it has them, else installed into target/bench-env. With --write the table replaces the
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
import tempfile
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


class Worker:
    """A contestant of PyTorch's, ONNX Runtime's or OpenVINO's, which measures a round whenever it is asked to."""

    def __init__(self, command, environment):
        self.command = " ".join(command)
        self.errors = tempfile.TemporaryFile("w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"{self.command} failed:\n{self.errors.read()}")
        return line

    def measure(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    """This engine: starts at once, so every round is a process of its own."""

    def __init__(self, job, command, environment):
        self.job, self.command, self.environment = job, command, environment

    def measure(self):
        result = subprocess.run(self.command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{' '.join(self.command)} failed:\n{result.stderr}")
        report = json.loads(result.stdout)
        return {**report[self.job], "peak_resident_bytes": report["peak_resident_bytes"]}

    def stop(self):
        pass


def start(contestant, job, batch, args):
    """A contestant, ready for its first round."""
    _, environment, script, first, flags = contestant
    options = ["--batch", batch, "--threads", args.threads, "--seconds", args.seconds, *flags]
    if script is None:
        binary = ROOT / "target/release/resnet"
        command = [binary, "bench", f"cifar-resnet{args.depth}", "--json", *options]
        return Bench(job, list(map(str, command)), environment)
    command = [sys.executable, ROOT / "bench" / script, *first, job, "--depth", args.depth, *options]
    return Worker(list(map(str, command)), environment)


def rounds_of(job, batch, contestants, args):
    """What each contestant measured in each round."""
    contestants = [c for c in contestants if job != "training" or c[2] != ONNX]
    workers = {}
    for contestant in contestants:
        print(f"{job}, batch {batch}: starting {contestant[0]}", file=sys.stderr)
        workers[contestant[0]] = start(contestant, job, batch, args)
    results = {name: [] for name in workers}
    for number in range(1, args.rounds + 1):
        for name, worker in workers.items():
            results[name].append(worker.measure())
        speeds = ", ".join(f"{name} {rounds[-1]['images_per_second']:.0f}" for name, rounds in results.items())
        print(f"{job}, batch {batch}, round {number}: {speeds}", file=sys.stderr)
    for worker in workers.values():
        worker.stop()
    return results


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
    return statistics.median(measured[what] for measured in rounds)


def cells(name, training, inference, single):
    """A row of the table."""
    speed, row = "images_per_second", [name]
    if name in training:
        rounds = training[name]
        ratio = median(rounds, speed) / median(training[BASELINE], speed)
        fastest, memory = max(measured[speed] for measured in rounds), median(rounds, "peak_resident_bytes") / 1e6
        row += [f"{median(rounds, speed):.0f}", f"{ratio:.2f}", f"{fastest:.0f}", f"{memory:.0f}"]
    else:
        row += [""] * 4
    images = median(inference[name], speed)
    row += [f"{images:.0f}", f"{images / median(inference[BASELINE], speed):.2f}"]
    return [*row, f"{median(single[name], 'step_ms'):.2f}"]


def table(contestants, results, args):
    command = shlex.join(["python3", "bench/side_by_side.py", *sys.argv[1:]])
    lines = [
        f"ResNet-{args.depth}, batch {args.batch}, {args.threads} threads, median of {args.rounds} rounds,",
        f"{time.strftime('%Y-%m-%d')}; {machine()}.",
        f"`{command}`",
        "",
        "| | training img/s | ratio | fastest round | peak memory MB | inference img/s | ratio | one image ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(cells(contestant[0], *results))} |" for contestant in contestants]
    return "\n".join(lines)


def around(path, depth):
    """What stands before and after the section between the markers of `path`, with the markers."""
    begin, end = f"<!-- side_by_side {depth} -->", f"<!-- end {depth} -->"
    page = path.read_text() if path.is_file() else ""
    if begin not in page or end not in page:
        sys.exit(f"{path}: expected a file with the markers {begin} and {end}")
    before, rest = page.split(begin, 1)
    return before + begin, end + rest.split(end, 1)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="6n+2")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--only", default="", help="contestants whose name contains this, and the baseline")
    parser.add_argument("--write", type=Path, help="file whose section to replace")
    args = parser.parse_args()
    if args.depth < 8 or args.depth % 6 != 2:
        parser.error(f"--depth {args.depth}: expected 6n+2")
    if min(args.batch, args.threads, args.rounds, args.seconds) <= 0:
        parser.error("--batch, --threads, --rounds and --seconds: expected more than nothing")
    if args.write:
        around(args.write, args.depth)
    with_the_others()
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "resnet-cli"], cwd=ROOT, check=True)
    chosen = [c for c in CONTESTANTS if args.only in c[0] or c[0] == BASELINE]
    jobs = [("training", args.batch), ("inference", args.batch), ("inference", 1)]
    results = [rounds_of(job, batch, chosen, args) for job, batch in jobs]
    text = table(chosen, results, args)
    print(text)
    if args.write:
        before, after = around(args.write, args.depth)
        args.write.write_text(f"{before}\n{text}\n{after}")


if __name__ == "__main__":
    main()
