"""A device beside PyTorch on the same machine and in the same run: `tier bench --ops` and, where torch sees a GPU (or with --torch-device),
the same shapes in torch; Markdown. Without torch the column is left out.

python gpu.py --tier PATH --device vulkan:0 [--sizes full|small] [--seconds S] [--torch-device cuda]
"""
import argparse, json, subprocess, sys, time

a = argparse.ArgumentParser()
a.add_argument("--tier", default="tier")
a.add_argument("--device", default="vulkan")
a.add_argument("--sizes", default="full", choices=["full", "small"])
a.add_argument("--seconds", type=float, default=1.0)
a.add_argument("--torch-device")
a = a.parse_args()

command = [a.tier, "bench", "--ops", a.sizes, "--seconds", str(a.seconds), "--device", a.device, "--json"]
ours = subprocess.run(command, capture_output=True, text=True)
if ours.returncode != 0:
    sys.exit(f"{' '.join(command)}\n{ours.stderr[-2000:]}")
rows = [json.loads(line) for line in ours.stdout.splitlines()]

try:
    import torch

    device = a.torch_device or ("cuda" if torch.cuda.is_available() else None)
except ImportError:
    torch = device = None


def wait():
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(run):
    """Seconds of a run: the median of groups of at least 20 ms."""

    def group(runs):
        wait()
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wait()
        return time.perf_counter() - start

    group(2)
    runs, start = 1, time.perf_counter()
    while runs < 4096 and group(runs) < 0.02:
        runs *= 2
    # To its full clock.
    while time.perf_counter() < start + 0.3:
        group(runs)
    times, end = [], time.perf_counter() + a.seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append(group(runs) / runs)
    return sorted(times)[len(times) // 2]


def model(name, batch, side):
    import torchvision

    if a.sizes == "small":
        return None
    net = (torchvision.models.vit_b_16 if name.startswith("vit") else torchvision.models.resnet50)(num_classes=14)
    x = torch.randn(batch, 3, side, side, device=device)
    if name.startswith("resnet"):
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    return net.to(device), x


def inference(net, x):
    with torch.inference_mode():
        net(x)


def peer(op, dims):
    """The same in torch: eager, f32 without TF32 but where the row says bf16 or f16."""
    F, drawn = torch.nn.functional, lambda *d: torch.randn(*d, device=device)
    half = {"bf16": torch.bfloat16, "f16": torch.float16}.get(op.rsplit("_", 1)[-1], torch.float32)
    if op == "layer_norm_and_gradient":
        dy, all = drawn(*dims), [drawn(*d).requires_grad_() for d in (dims, dims[1:], dims[1:])]
        return lambda: torch.autograd.grad(F.layer_norm(all[0], dims[1:], *all[1:]), all, dy)
    if op in ("copy", "transposed", "add", "sum_columns", "layer_norm", "softmax", "gelu"):
        x, y, w, b = drawn(*dims), drawn(*dims), drawn(dims[1]), drawn(dims[1])
        return {
            "copy": lambda: x.clone(),
            "transposed": lambda: x.t().contiguous(),
            "add": lambda: x + y,
            "sum_columns": lambda: x.sum(0),
            "layer_norm": lambda: F.layer_norm(x, dims[1:], w, b),
            "softmax": lambda: x.softmax(-1),
            "gelu": lambda: F.gelu(x),
        }[op]
    if op.startswith("gemm"):
        x, w = drawn(dims[0], dims[2]).to(half), drawn(dims[1], dims[2]).to(half)
        return lambda: F.linear(x, w)
    if op.startswith("attention"):
        backward = op.endswith("gradient")
        qkv = [drawn(*dims).requires_grad_(backward) for _ in range(3)]
        if not backward:
            return lambda: F.scaled_dot_product_attention(*qkv)
        dy = drawn(*dims)
        return lambda: torch.autograd.grad(F.scaled_dot_product_attention(*qkv), qkv, dy)
    if op == "conv2d":
        n, side, inputs, outputs, kernel = dims
        x, w = drawn(n, inputs, side, side), drawn(outputs, inputs, kernel, kernel)
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        return lambda: F.conv2d(x, w, padding=kernel // 2)
    if op == "launch":
        x = drawn(dims[1])

        def chain():
            y = x
            for _ in range(dims[0]):
                y = y + 1.0

        return chain
    made = model(op, dims[0], dims[2])
    if made is None:
        return None
    net, x = made
    if "_step" not in op:
        net, x = net.eval().to(half), x.to(half)
        return lambda: inference(net, x)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-6)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=half is torch.bfloat16):
            y = net(x)
        y.float().square().sum().backward()
        optimiser.step()

    return step


if device:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"{a.device} beside torch {torch.__version__} on {name}; f32 without TF32.\n")
else:
    print(f"{a.device}; torch, or a GPU that it knows, is not there.\n")
print(f"| op | shape | tier ms | rate | idle |{' torch ms | tier of torch |' if device else ''}")
print("|---|---|---|---|---|" + ("---|---|" if device else ""))
for row in rows:
    unit = next(key for key in row if "_per_" in key)
    idle = (row["device"] or {}).get("idle")  # of the time, the share in which the device had nothing to do
    cells = [row["op"], row["shape"], f"{row['ms']:.3f}", f"{row[unit]:.1f} {unit.replace('_per_', '/')}"]
    cells.append("" if idle is None else f"{100 * idle:.1f} %")
    if device:
        run = peer(row["op"], [int(n) for n in row["shape"].split()])
        torch_ms = timed(run) * 1e3 if run else None
        cells += [f"{torch_ms:.3f}", f"{100 * torch_ms / row['ms']:.0f} %"] if run else ["", ""]
    print(f"| {' | '.join(cells)} |", flush=True)
