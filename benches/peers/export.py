"""Random models of the usual sizes: OUT/NAME/{config.json, model.safetensors, b1.onnx, b8.onnx, golden.safetensors}.

python export.py OUT    needs torch, torchvision, transformers, safetensors, onnx, onnxscript
golden.safetensors has inputs and PyTorch's f32 outputs, so that whoever is timed is also checked.
"""
import json, pathlib, sys
import torch, torchvision
from safetensors.torch import save_file
from transformers import (BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig,
                          CLIPVisionModelWithProjection, ViTConfig, ViTForImageClassification)

pixels = lambda side: lambda n: torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(7))


def ids(length, vocabulary):
    return lambda n: torch.randint(1, vocabulary, (n, length), generator=torch.Generator().manual_seed(7))


MODELS = {
    "vit_b32": (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32)), pixels(224), lambda y: y.image_embeds),
    "vit_b16": (lambda: ViTForImageClassification(ViTConfig(num_labels=1000)), pixels(224), lambda y: y.logits),
    "resnet50_224": (torchvision.models.resnet50, pixels(224), lambda y: y),
    "resnet50_480": (torchvision.models.resnet50, pixels(480), lambda y: y),
    "clip_text": (lambda: CLIPTextModelWithProjection(CLIPTextConfig(eos_token_id=2)), ids(77, 49408), lambda y: y.text_embeds),
    "bert_128": (lambda: BertModel(BertConfig()), ids(128, 30522), lambda y: y.pooler_output),
}


class Output(torch.nn.Module):
    def __init__(self, model, pick):
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x):
        return self.pick(self.model(x))


if __name__ == "__main__":
    for name, (build, draw, pick) in MODELS.items():
        folder = pathlib.Path(sys.argv[1], name)
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = build().eval()
        whole = Output(model, pick).eval()
        save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
        config = model.config.to_dict() if hasattr(model, "config") else {}
        (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
        golden = {}
        for batch in (1, 8):
            x = draw(batch)
            with torch.inference_mode():
                golden[f"input_b{batch}"], golden[f"output_b{batch}"] = x, whole(x).contiguous().clone()
            torch.onnx.export(whole, (x,), folder / f"b{batch}.onnx", input_names=["x"], output_names=["y"],
                              opset_version=18, dynamo=True, external_data=False, verbose=False)
        save_file(golden, folder / "golden.safetensors")
        print(name, flush=True)
