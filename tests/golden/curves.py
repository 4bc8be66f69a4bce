#!/usr/bin/env python3
"""Makes the training curves beside this file: 20 steps of AdamW, and what PyTorch computes of them in float64 and float32.

    python curves.py

The models are those that generate.py wrote (`hf-clip`, `biovil.pt` and `cxr-bert`), so only batches and curves are written. What a curve allows is
20 times what PyTorch's own float32 deviates from float64 over the same steps. README.md has the versions.
"""
import torch
from torch import nn
from safetensors.torch import save_file

from generate import HERE, HfClip, Parts, images, objective, words

STEPS, BATCHES, PAIRS = 20, 3, 5
LR, DECAY, CLIP = 1e-3, 0.05, 1.0
OPTIONS = {"lambda_p": 2.0, "lambda_t": 1.0, "eps": 1e-7, "mask_padding": True}
PARTS = ["loss", "loss_clip", "patch_entropy", "token_entropy"]


def batches(seed, size, lengths, vocabulary, first, last):
    for i in range(BATCHES):
        yield {"pixel_values": images(seed + i, PAIRS, size), **words(seed + i, lengths[i:] + lengths[:i], vocabulary, first, last, max(lengths))}


def curve(family, model, state, data, dtype):
    """[STEPS, 4]: the parts of the objective before each step; batch norms go by the batch, nothing is dropped."""
    model = model.to(dtype)
    model.load_state_dict({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    for m in model.modules():
        assert not isinstance(m, nn.Dropout) or m.p == 0 or not m.training
        if isinstance(m, nn.BatchNorm2d):
            m.train()
    adam = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, foreach=False)
    rows = []
    for step in range(STEPS):
        x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in data[step % BATCHES].items()}
        adam.zero_grad()
        found = objective(family.compute(model, x), x["attention_mask"], OPTIONS)
        rows.append(torch.stack([found[name].detach() for name in PARTS]))
        found["loss"].backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.sqrt(sum(g.double().square().sum() for g in grads))
        if norm > CLIP:
            [g.mul_(float(CLIP / norm)) for g in grads]
        adam.step()
    return torch.stack(rows).double()


def write(family, name, of, data):
    state = {k: v.clone() for k, v in family.network().state_dict().items()}
    exact, rounded = (curve(family, family.network(), state, data, dtype) for dtype in (torch.float64, torch.float32))
    own = (rounded - exact).abs().amax(0)
    assert (own > 0).all() and (own < 1e-4).all(), own
    assert exact[-1, 0] < exact[0, 0] - 0.1, "nothing is learned"
    tensors = {f"{k}.{i}": v.contiguous() for i, x in enumerate(data) for k, v in x.items()}
    tensors.update({"curve": exact, "deviation": own})
    text = {"model": of, "lr": LR, "weight_decay": DECAY, "clip_norm": CLIP, **OPTIONS}
    path = HERE / f"{name}.curve.safetensors"
    save_file(tensors, path, {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in sorted(text.items())})
    path.chmod(0o644)
    print(f"{path.name:28} {path.stat().st_size:8}  loss {exact[0, 0]:.3f} to {exact[-1, 0]:.3f}", ["%.1e" % d for d in own])


def main():
    torch.set_num_threads(1)
    write(HfClip(), "vit", HfClip.name, list(batches(61, (18, 18), [13, 5, 9, 11, 7], 60, 58, 59)))
    parts = Parts()
    write(parts, "resnet", parts.write(), list(batches(71, (32, 24), [10, 4, 12, 7, 9], 50, 2, 3)))


if __name__ == "__main__":
    main()
