#!/usr/bin/env python3
"""Makes the golden cases of towers alone (folder `alone`): what transformers', torchvision's and timm's own classes give of them; and what
Pillow makes of a picture that is stretched to a square, as Hugging Face's ViT wants it.

    python alone.py            # versions: README.md, and Pillow 13.0.0
"""
import json
import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from generate import HERE, draw, images, settle, trunk, words

ALONE = HERE / "alone"


def old(name):
    """The names that ViT's parameters had before transformers 5."""
    if "layers." in name:
        name = name.replace("layers.", "encoder.layer.", 1)
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        for short, long in [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"), ("o_proj", "output.dense")]:
            name = name.replace(short, long)
    return name


def write(name, model, config=None, rename=lambda n: n):
    (ALONE / name).mkdir(parents=True)
    tensors = {rename(k): v.contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    save_file(tensors, ALONE / name / "model.safetensors")
    if config:
        keep = {k: v for k, v in config.to_dict().items() if isinstance(v, (int, float, str)) or v is None}
        (ALONE / name / "config.json").write_text(json.dumps(keep, indent=1, sort_keys=True) + "\n")


def case(name, model, inputs, compute, suffix=""):
    def found(dtype):
        x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            return {f"expect.{k}": v.double() for k, v in compute(model.to(dtype), x).items()}

    exact, rounded = found(torch.float64), found(torch.float32)
    off = max(float((rounded[k] - v).norm() / v.norm()) for k, v in exact.items())
    text = {"format": "tier-parity/1", "case": name + suffix, "model": name, "train_mode": "eval", "rtol": str(max(2e-5, float(f"{20 * off:.1e}")))}
    path = ALONE / f"{name}{suffix}.case.safetensors"
    save_file({**inputs, **{k: v.float().contiguous() for k, v in exact.items()}}, path, text)
    print(path.name, path.stat().st_size, text["rtol"])


def vit():
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4)
    config = ViTConfig(**sizes, num_labels=3, layer_norm_eps=1e-6)
    model = draw(ViTForImageClassification(config), 101)
    write("hf-vit", model, config)
    compute = lambda m, x: {"output": m(**x, interpolate_pos_encoding=True).logits}
    case("hf-vit", model, {"pixel_values": images(1, 2, (16, 16))}, compute)
    case("hf-vit", model, {"pixel_values": images(2, 2, (24, 12))}, compute, ".interpolated")
    config = ViTConfig(**sizes)
    model = draw(ViTModel(config), 102)
    write("hf-vit-old", model, config, old)
    case("hf-vit-old", model, {"pixel_values": images(3, 2, (16, 16))}, lambda m, x: {"output": m(**x).pooler_output})


def clip():
    config = CLIPVisionConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4)
    model = draw(CLIPVisionModel(config), 103)
    write("clip-vision", model, config)
    # Its pooler_output is the class token after the last norm.
    case("clip-vision", model, {"pixel_values": images(4, 2, (16, 16))}, lambda m, x: {"output": m(**x).pooler_output})
    config = CLIPTextConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                            max_position_embeddings=9, projection_dim=10, bos_token_id=38, eos_token_id=39)
    model = draw(CLIPTextModelWithProjection(config), 104)
    write("clip-text", model, config)
    texts = words(5, [9, 4, 6], 40, 38, 39)
    case("clip-text", model, texts, lambda m, x: {"output": m(**x).text_embeds, "text_embeds": m(**x).text_embeds})


def bert():
    config = BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                        max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = draw(BertModel(config), 105)
    write("bert", model, config)
    case("bert", model, words(6, [10, 4, 7], 40, 2, 3), lambda m, x: {"output": m(**x).pooler_output})


def resnet():
    model = trunk("BasicBlock", [1, 2, 1, 1], 4)
    model.fc = nn.Linear(32, 5)
    draw(model, 106)
    settle(model, 107, (48, 48))
    write("resnet", model)
    case("resnet", model, {"pixel_values": images(7, 2, (48, 40))}, lambda m, x: {"output": m.fc(m(x["pixel_values"]).mean((2, 3)))})


def timm():
    sizes = dict(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1, mlp_ratio=0.5, num_classes=3, global_pool="avg")
    # The mean of the patches, then a norm, beside a class token; nothing says so but the tensors.
    model = draw(VisionTransformer(**sizes), 108)
    write("timm-fc-norm", model)
    case("timm-fc-norm", model, {"pixel_values": images(8, 2, (16, 16))}, lambda m, x: {"output": m(x["pixel_values"])})
    # A norm, then the mean of the patches, without a class token; timm's config.json says which pooling.
    model = draw(VisionTransformer(**sizes, class_token=False, fc_norm=False), 109)
    write("timm-no-class", model)
    config = {"architecture": "vit_small_patch16_224", "global_pool": "avg", "model_args": {"class_token": False, "fc_norm": False, "img_size": 16}}
    (ALONE / "timm-no-class" / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    case("timm-no-class", model, {"pixel_values": images(9, 2, (16, 16))}, lambda m, x: {"output": m(x["pixel_values"])})


def stretch():
    rng = np.random.default_rng(7)
    tensors = {}
    for name, size, side in [("wide", (37, 21), 16), ("tall", (13, 50), 24), ("grey", (40, 30), 20)]:
        levels = rng.integers(0, 256, (size[1], size[0], 1 if name == "grey" else 3), dtype=np.uint8)
        levels[::3] //= 4
        picture = Image.fromarray(levels[..., 0] if name == "grey" else levels)
        tensors[f"{name}.picture"] = torch.from_numpy(levels)
        for filter in ["bilinear", "bicubic"]:
            seen = picture.convert("RGB").resize((side, side), getattr(Image, filter.upper()))
            tensors[f"{name}.{filter}"] = torch.from_numpy(np.array(seen))
    save_file(tensors, ALONE / "stretch.safetensors", {"made_by": "PIL.Image.resize"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(ALONE, ignore_errors=True)
    ALONE.mkdir()
    for make in (vit, clip, bert, resnet, timm, stretch):
        make()
    for path in ALONE.rglob("*.*"):
        path.chmod(0o644)
