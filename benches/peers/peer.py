"""One engine on one model of export.py, in a process of its own; prints one JSON line like that of `tier bench --json`.

python peer.py ENGINE FOLDER --batch N --threads T --seconds S    ENGINE: torch, onnxruntime, openvino
"""
import argparse, json, os, pathlib, statistics, time

a = argparse.ArgumentParser()
a.add_argument("engine")
a.add_argument("folder", type=pathlib.Path)
a.add_argument("--batch", type=int)
a.add_argument("--threads", type=int)
a.add_argument("--seconds", type=float)
a = a.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(a.threads)
onnx = str(a.folder / f"b{a.batch}.onnx")

from safetensors import safe_open

with safe_open(a.folder / "golden.safetensors", "np") as f:
    x, expected = f.get_tensor(f"input_b{a.batch}"), f.get_tensor(f"output_b{a.batch}")

if a.engine == "torch":
    import torch
    from safetensors.torch import load_file

    import export

    torch.set_num_threads(a.threads)
    build, _, pick = export.MODELS[a.folder.name]
    model = build().eval()
    model.load_state_dict(load_file(a.folder / "model.safetensors"))
    given = torch.from_numpy(x)
    if "resnet" in a.folder.name:
        model, given = model.to(memory_format=torch.channels_last), given.contiguous(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return pick(model(given)).numpy()
elif a.engine == "onnxruntime":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = a.threads, 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"x": x})[0]
elif a.engine == "openvino":
    import openvino

    hints = {"INFERENCE_NUM_THREADS": a.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(onnx, "CPU", hints).create_infer_request()
    run = lambda: next(iter(request.infer({"x": x}).values()))
else:
    raise SystemExit(f"{a.engine} is not torch, onnxruntime or openvino")

y = run()
run()
times, end = [], time.perf_counter() + a.seconds
while len(times) < 3 or time.perf_counter() < end:
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
print(json.dumps({"ms": 1e3 * statistics.median(times), "relerr": float(abs(y - expected).max() / abs(expected).max())}))
