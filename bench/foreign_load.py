#!/usr/bin/env python3
"""Measures what other work on the machine leaves of this engine's speed, and prints a table.

    python3 bench/foreign_load.py                     # ResNet-20, batch 128, beside 0, 1 and 2 busy processes
    python3 bench/foreign_load.py --precision f32 --rounds 5

The other work are processes that do nothing but keep a core busy. The loads take turns, `--rounds` times; the table
gives the median of the rounds. Speeds are means over the time measured, for the median step would hide the
interrupted ones. The fair share is that of as many cores as there are, among all threads and processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def busy_processes(count):
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(args):
    """Images a second of training and of inference."""
    command = [ROOT / "target/release/resnet", "bench", "--json", "--threads", args.threads, "--batch", args.batch]
    command += ["--seconds", args.seconds, *(["--precision", args.precision] if args.precision else [])]
    report = json.loads(subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True).stdout)
    return [report[what]["steps"] * args.batch / args.seconds for what in ("training", "inference")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", help="f32 or bf16; by default what is fastest here")
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 2], help="busy processes, in turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    args = parser.parse_args()
    results = {load: [] for load in (0, *args.loads)}
    for _ in range(args.rounds):
        for load, rounds in results.items():
            with busy_processes(load):
                rounds.append(measure(args))
    medians = {load: list(map(statistics.median, zip(*rounds))) for load, rounds in results.items()}
    print("| busy processes | training img/s | share | inference img/s | share | fair share |")
    print("|---:|---:|---:|---:|---:|---:|")
    for load, speeds in medians.items():
        cells = [f"{speed:.0f} | {speed / alone:.2f}" for speed, alone in zip(speeds, medians[0])]
        fair = min(1, os.cpu_count() / (args.threads + load))
        print(f"| {load} | {' | '.join(cells)} | {fair:.2f} |")


if __name__ == "__main__":
    main()
