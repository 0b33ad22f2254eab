#!/usr/bin/env python3
"""Says whether two builds compute the same bits: trains briefly on the built-in data and prints checksums.

    python3 bench/same_bits.py target/release/resnet > before.txt
    python3 bench/same_bits.py target/release/resnet --against before.txt

Every instruction set of this machine, every precision, and ResNet-20 with shortcuts A and B and plain-20. A line's
checksum covers the values of all weights and running statistics, and the losses and errors that the run recorded:
forward, backward, update, data and inference. With --against the lines that differ are shown and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORKS = {"resnet20-a": ["resnet20"], "plain20": ["plain20"], "resnet20-b": ["resnet20", "--shortcut", "b"]}
PRECISIONS = ["f32", "tf32", "bf16"]
# The word in /proc/cpuinfo that tells each instruction set; plain Rust runs everywhere.
INSTRUCTION_SETS = {"portable": "", "avx2": "avx2", "avx512": "avx512f", "amx": "amx_bf16"}
MEASURED = ["iteration", "train_loss", "train_error", "test_loss", "test_error"]


def main():
    arguments = parse()
    flags = Path("/proc/cpuinfo").read_text()
    known = read(arguments.against) if arguments.against else {}
    differ = 0
    for isa, flag in INSTRUCTION_SETS.items():
        if flag not in flags or (arguments.isa and isa not in arguments.isa):
            continue
        for precision in arguments.precision or PRECISIONS:
            for name, network in NETWORKS.items():
                case = f"{name} {isa} {precision} x{arguments.iterations}"
                found = checksum(arguments, isa, precision, network)
                differs = case in known and known[case] != found
                differ += differs
                print(f"{found}  {case}{'  DIFFERS from ' + known[case] if differs else ''}", flush=True)
                if known and case not in known:
                    print(f"  (not in {arguments.against})", flush=True)
    sys.exit(differ > 0)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("resnet", type=Path, help="the program")
    parser.add_argument("--iterations", type=int, default=60, help="steps of each run")
    parser.add_argument("--batch", type=int, default=40, help="images of a step; not a multiple of 16 on purpose")
    parser.add_argument("--isa", action="append", choices=INSTRUCTION_SETS, help="only this instruction set")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this precision")
    parser.add_argument("--against", type=Path, help="what an earlier build printed")
    return parser.parse_args()


def read(path):
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {case.split("  ")[0].strip(): found for found, case in lines}


def checksum(arguments, isa, precision, network):
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.resnet.resolve(), "train", *network, "--precision", precision, "--seed", "7"]
        command += ["--iterations", str(arguments.iterations), "--batch", str(arguments.batch)]
        command += ["--validation-images", "72"]  # evaluated instead of thousands of test images
        command += ["--out", folder, "--name", "run"]
        done = subprocess.run(command, env=os.environ | {"RESNET_ISA": isa}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
        run = Path(folder) / "run"
        total = hashlib.sha256()
        for name, values in tensors(run / "checkpoints" / "last.safetensors"):
            total.update(name.encode() + values)
        for line in (run / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            total.update(json.dumps([record.get(key) for key in MEASURED]).encode())
        return total.hexdigest()[:16]


def tensors(path):
    """Names and bytes of a safetensors file's tensors, by name."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for name, tensor in sorted(header.items()):
        first, end = tensor["data_offsets"]
        yield name, content[start + first : start + end]


if __name__ == "__main__":
    main()
