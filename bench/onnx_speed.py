"""Times ONNX Runtime or OpenVINO running a CIFAR residual network: for each line it reads, one round and one line of JSON.

Started by side_by_side.py. The network is that of pytorch_speed.py, exported to ONNX.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from pytorch_speed import answer_rounds, cifar_resnet


def onnx_runtime(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def openvino(path, threads, precision):
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()
    return lambda images: request.infer({0: images})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=("onnxruntime", "openvino"))
    parser.add_argument("job", choices=("inference",))
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    args = parser.parse_args()

    images = torch.randn(args.batch, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(cifar_resnet(args.depth).eval(), (images,), path, opset_version=18, dynamo=False)
        if args.engine == "onnxruntime":
            run = onnx_runtime(path, args.threads)
        else:
            run = openvino(path, args.threads, args.precision)
    images = images.numpy()
    answer_rounds(lambda: run(images), args)


if __name__ == "__main__":
    main()
