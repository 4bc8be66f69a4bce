"""`tier` beside other engines: every cell runs all of them in turn, ROUNDS times, each in its own process; Markdown.

python compare.py MODELS --tier PATH --engine torch=PYTHON --engine onnxruntime=PYTHON --engine openvino=PYTHON
MODELS is what export.py wrote; PYTHON is an interpreter that has the engine. Any other NAME is a command of its own that takes
--dir MODELS --model NAME --batch N --threads T --secs S and prints such a line as peer.py. --dtype bf16 and int8 need engines that have it; the
largest relative error of an output is told then. A cell is the median of the rounds' medians, its ratio that of the
fastest other engine to ours: above 1 we are ahead.
"""
import argparse, json, math, pathlib, statistics, subprocess, sys

a = argparse.ArgumentParser()
a.add_argument("models", type=pathlib.Path)
a.add_argument("--tier", default="tier")
a.add_argument("--engine", action="append", required=True, metavar="NAME=PYTHON")
a.add_argument("--only", default="vit_b32,vit_b16,resnet50_224,resnet50_480,clip_text,bert_128")
a.add_argument("--batches", default="1,8")
a.add_argument("--threads", default="1,2")
a.add_argument("--rounds", type=int, default=7)
a.add_argument("--seconds", type=float, default=2)
a.add_argument("--dtype", choices=["f32", "bf16", "int8"], default="f32")
a = a.parse_args()
peer = str(pathlib.Path(__file__).with_name("peer.py"))
engines = dict(pair.split("=", 1) for pair in a.engine)
names, errors = list(engines), {}


def measure(name, model, batch, threads):
    folder = a.models / model
    common = ["--batch", batch, "--threads", threads, "--seconds", str(a.seconds)]
    if name == "tier":
        golden = str(folder / "golden.safetensors")
        command = [a.tier, "bench", "--model", str(folder), "--golden", golden, "--dtype", a.dtype, "--json", *common]
    elif name in ("torch", "onnxruntime", "openvino"):
        command = [engines[name], peer, name, str(folder), "--dtype", a.dtype, *common]
    else:
        command = [engines[name], "--dir", str(a.models), "--model", model, *common[:4], "--secs", str(a.seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    line = json.loads(done.stdout.splitlines()[-1])
    errors[name] = max(errors.get(name, 0), line["relerr"])
    if a.dtype == "f32" and not line["relerr"] < 1e-4:
        sys.exit(f"{' '.join(command)}: the output is off by {line['relerr']:.1e}")
    return line["ms"]


print(f"| model | batch | threads | tier ms | {' | '.join(n + ' ms' for n in names)} | ahead of the fastest |")
print("|---" * (len(names) + 5) + "|")
ratios = []
for model in a.only.split(","):
    for batch in a.batches.split(","):
        for threads in a.threads.split(","):
            rounds = [{n: measure(n, model, batch, threads) for n in ["tier", *names]} for _ in range(a.rounds)]
            ms = {n: statistics.median(r[n] for r in rounds) for n in ["tier", *names]}
            ratio = min(ms[n] for n in names) / ms["tier"]
            ratios.append(ratio)
            cells = " | ".join(f"{ms[n]:.1f}" for n in ["tier", *names])
            print(f"| {model} | {batch} | {threads} | {cells} | {ratio:.2f}{'' if ratio >= 1 else ' (behind)'} |", flush=True)
mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
print(f"\nGeometric mean {mean:.2f}, smallest {min(ratios):.2f}, behind in {sum(r < 1 for r in ratios)} of {len(ratios)} cells.")
print("Largest relative error: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
