"""Times PyTorch training or running a CIFAR residual network: for each line it reads, one round and one line of JSON.

Started by side_by_side.py. The network, the optimizer and the batch are those of `resnet bench`: option A shortcuts,
SGD with momentum and weight decay, random images, no data loading.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def conv3x3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


def cifar_resnet(depth):
    blocks = (depth - 2) // 6
    layers, channels = [conv3x3(3, 16), nn.BatchNorm2d(16), nn.ReLU()], 16
    for stage, width in enumerate((16, 32, 64)):
        for index in range(blocks):
            layers.append(Block(channels, width, 2 if stage and not index else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def answer_rounds(step, args):
    """Warms up and says so, then measures a round for each line on the standard input."""
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        step()  # others had the caches since
        times, start = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - start < args.seconds:
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
        median = statistics.median(times)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report = {"images_per_second": args.batch / median, "step_ms": median * 1e3, "peak_resident_bytes": resident}
        print(json.dumps(report), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("training", "inference"))
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = cifar_resnet(args.depth).to(memory_format=layout).train(args.job == "training")
    images = torch.randn(args.batch, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (args.batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, weight_decay=1e-4)
    network = torch.compile(model) if args.compile else model

    def training_step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def inference_step():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            network(images)

    step = training_step if args.job == "training" else inference_step
    answer_rounds(step, args)


if __name__ == "__main__":
    main()
