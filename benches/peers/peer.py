"""One engine on one model of export.py, in a process of its own; prints one JSON line like that of `tier bench --json`.

python peer.py ENGINE FOLDER --batch N --threads T --seconds S [--dtype D]    ENGINE: torch, onnxruntime, openvino
bf16: weights and activations of torch, the precision hint of openvino. int8: dynamic quantisation of onnxruntime; NNCF's of
openvino, calibrated on noise (needs nncf). Both write the quantised model beside the other one.
"""
import argparse, json, os, pathlib, statistics, time

a = argparse.ArgumentParser()
a.add_argument("engine")
a.add_argument("folder", type=pathlib.Path)
a.add_argument("--batch", type=int)
a.add_argument("--threads", type=int)
a.add_argument("--seconds", type=float)
a.add_argument("--dtype", choices=["f32", "bf16", "int8"], default="f32")
a = a.parse_args()
if (a.engine, a.dtype) in [("torch", "int8"), ("onnxruntime", "bf16")]:
    raise SystemExit(f"{a.engine} has no {a.dtype} here")
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
    if a.dtype == "bf16":
        model, given = model.bfloat16(), given.bfloat16() if given.is_floating_point() else given
    if "resnet" in a.folder.name:
        model, given = model.to(memory_format=torch.channels_last), given.contiguous(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            return pick(model(given)).float().numpy()
elif a.engine == "onnxruntime":
    import onnxruntime

    if a.dtype == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole, onnx = onnx, onnx.replace(".onnx", ".int8.onnx")
        if not os.path.exists(onnx):
            quantize_dynamic(whole, onnx, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = a.threads, 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"x": x})[0]
elif a.engine == "openvino":
    import openvino

    core, model = openvino.Core(), onnx
    if a.dtype == "int8":
        model = onnx.replace(".onnx", ".int8.xml")
        if not os.path.exists(model):
            import nncf, numpy

            noise = numpy.random.default_rng(0)
            seen = [x if x.dtype.kind == "i" else noise.standard_normal(x.shape, dtype=numpy.float32) for _ in range(4)]
            kind = {} if "resnet" in a.folder.name else {"model_type": nncf.ModelType.TRANSFORMER}
            quantised = nncf.quantize(core.read_model(onnx), nncf.Dataset(seen), subset_size=4, **kind)
            openvino.save_model(quantised, model, compress_to_fp16=False)
    precision = "bf16" if a.dtype == "bf16" else "f32"
    hints = {"INFERENCE_NUM_THREADS": a.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
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
