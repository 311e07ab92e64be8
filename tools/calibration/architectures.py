"""The published networks that AI Hub's table measures, by its names, as modules without weights on the meta device.

From torchvision, timm and transformers where they have the network, else from our own small definitions. Input sizes
are those of AI Hub's model pages at the table's date. Names beyond the calibration table are there to be predicted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

os.environ["TIMM_FUSED_ATTN"] = "0"  # attention as the products it is, as an exporter writes it

import torch
from torch import nn

from calibration import detection, segmentation, superresolution, traced
from edgeredux.prediction.operators import Operator

# torchvision's compiled operators are built for a CUDA torch; their names are enough to import it for its networks.
_COMPILED = ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")


@dataclass(frozen=True)
class Built:
    """A module with the shapes (floats) or tensors (anything else) that it is called with."""

    module: nn.Module
    inputs: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)


def _define_compiled() -> None:
    names = [*_COMPILED, *(f"_{name}_backward" for name in _COMPILED), "nms", "qnms", "qroi_align"]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor a) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []


def _image(size: int | tuple[int, int] = 224, channels: int = 3) -> tuple[int, ...]:
    high, wide = (size, size) if isinstance(size, int) else size
    return (1, channels, high, wide)


def _vision(name: str, size: int = 224, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import torchvision.models as models

        return Built(getattr(models, name)(weights=None, **options), (_image(size),))

    return build


def _segmentation(name: str, size: int = 520) -> Callable[[], Built]:
    def build() -> Built:
        import torchvision.models.segmentation as models

        return Built(getattr(models, name)(weights=None, weights_backbone=None, aux_loss=False), (_image(size),))

    return build


def _video(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import torchvision.models.video as models

        return Built(getattr(models, name)(), ((1, 3, 16, 112, 112),))

    return build


def _timm(name: str, size: int = 224, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import timm  # type: ignore[import-not-found]

        return Built(timm.create_model(name, pretrained=False, **options), (_image(size),))

    return build


class _Hrnet(nn.Module):
    """The highest-resolution branch of timm's HRNet and a last 1x1; with `every`, all branches joined before it."""

    def __init__(self, net: Any, outputs: int, *, every: bool) -> None:
        super().__init__()
        self.net, self.every = net, every
        wide = sum(net.stage4_cfg["num_channels"]) if every else net.stage4_cfg["num_channels"][0]
        head: list[nn.Module] = [nn.Conv2d(wide, outputs, 1)]
        if every:
            head = [nn.Conv2d(wide, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(), *head]
        self.head = nn.Sequential(*head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.net
        maps = n.stages(n.act2(n.bn2(n.conv2(n.act1(n.bn1(n.conv1(x)))))))
        if not self.every:
            return self.head(maps[0])
        size = maps[0].shape[2:]
        return self.head(
            torch.cat([maps[0], *(nn.functional.interpolate(m, size=size, mode="bilinear") for m in maps[1:])], 1)
        )


def _hrnet(name: str, size: tuple[int, int], outputs: int, *, every: bool) -> Callable[[], Built]:
    def build() -> Built:
        import timm

        return Built(_Hrnet(timm.create_model(name, pretrained=False), outputs, every=every), (_image(size),))

    return build


def _own(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    return lambda: Built(make(), shapes)


def _sr(make: Callable[[], nn.Module]) -> Callable[[], Built]:
    return _own(make, _image(128))


def _ffnet(
    counts: tuple[int, ...], widths: tuple[int, ...], strides: tuple[int, ...], head: str, size: tuple[int, int]
) -> Callable[[], Built]:
    return _own(lambda: segmentation.Ffnet(counts, widths, strides, head), _image(size))


def _bisenet() -> Built:
    import torchvision.models as models

    return Built(segmentation.BiSeNet(models.resnet18()), (_image((720, 960)),))


class _Low(nn.Module):
    """MobileNetV2 at stride 16: its maps at a quarter and at a sixteenth of the input."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision.models as models

        features = list(models.mobilenet_v2().features)[:-1]
        for block in features[14:]:
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    layer.stride, layer.dilation, layer.padding = (1, 1), (2, 2), (2, 2)
        self.low, self.high = nn.Sequential(*features[:4]), nn.Sequential(*features[4:])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.low(x)
        return low, self.high(low)


def _midas() -> Built:
    import timm

    body = timm.create_model("tf_efficientnet_lite3", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
    return Built(segmentation.Midas(body, body.feature_info.channels()), (_image(256),))


def _craft() -> Built:
    import torchvision.models as models

    return Built(segmentation.Craft(models.vgg16_bn().features), (_image((608, 800)),))


def _tokens(length: int) -> torch.Tensor:
    return torch.ones(1, length, dtype=torch.long)


def _text(kind: str, length: int = 384, head: str = "MaskedLM", **config: Any) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        made = getattr(transformers, f"{kind}Config")(attn_implementation="eager", **config)
        name = f"{kind}For{head}" if head else f"{kind}Model"
        named = {"input_ids": _tokens(length), "attention_mask": torch.ones(1, length, dtype=torch.long)}
        return Built(getattr(transformers, name)(made), named={**named, "return_dict": True})

    return build


def _hf(
    name: str, config: Callable[[Any], Any], shape: tuple[int, ...], key: str = "pixel_values"
) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        return Built(getattr(transformers, name)(config(transformers)), named={key: shape})

    return build


def _depth(transformers: Any) -> Any:
    backbone = transformers.Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=12,
        image_size=518,
        patch_size=14,
        out_features=["stage9", "stage10", "stage11", "stage12"],
        apply_layernorm=True,
        reshape_hidden_states=False,
        attn_implementation="eager",
    )
    return transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
        patch_size=14,
        attn_implementation="eager",
    )


def _detr(kind: str, layers: list[int], *, dilated: bool = False) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        backbone = transformers.ResNetConfig(depths=layers, out_features=["stage4"])
        config = getattr(transformers, f"{kind}Config")(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            num_labels=91,
            attn_implementation="eager",
        )
        module = getattr(transformers, f"{kind}ForObjectDetection")(config)
        if dilated:
            for name, layer in module.named_modules():
                if "stages.3.layers.0" in name and isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                    layer.stride = (1, 1)
        return Built(
            module, named={"pixel_values": _image(640), "pixel_mask": torch.ones(1, 640, 640, dtype=torch.long)}
        )

    return build


class _Encoder(nn.Module):
    """Encoder of a sequence-to-sequence model with the decoder's cross-attention keys and values."""

    def __init__(self, encoder: nn.Module, layers: Any, attention: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.products = nn.ModuleList(
            module
            for layer in layers
            for module in (getattr(layer, attention).k_proj, getattr(layer, attention).v_proj)
        )

    def forward(self, *args: Any, **named: Any) -> list[torch.Tensor]:
        hidden = self.encoder(*args, **named)[0]
        return [product(hidden) for product in self.products]


class _Step(nn.Module):
    """One token of a decoder with both caches given: projections, cached attention, feed-forward, vocabulary."""

    def __init__(self, layers: Any, heads: int, head: nn.Module, cross: str, past: int, source: int) -> None:
        super().__init__()
        self.layers, self.heads, self.head, self.cross = layers, heads, head, cross
        width = head.in_features
        self.width, self.past, self.source = width, past, source

    def _attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        size = self.width // self.heads
        q = q.view(1, 1, self.heads, size).transpose(1, 2)
        return ((q @ keys).softmax(-1) @ values).transpose(1, 2).reshape(1, 1, self.width)

    def forward(self, x: torch.Tensor, *caches: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            keys, values, far_keys, far_values = caches[4 * index : 4 * index + 4]
            own, far = layer.self_attn, getattr(layer, self.cross)
            size = self.width // self.heads
            k = own.k_proj(x).view(1, self.heads, size, 1)
            v = own.v_proj(x).view(1, self.heads, 1, size)
            keys, values = torch.cat([keys, k], 3), torch.cat([values, v], 2)
            x = layer.self_attn_layer_norm(x + own.out_proj(self._attend(own.q_proj(x), keys, values)))
            x = x + far.out_proj(self._attend(far.q_proj(x), far_keys, far_values))
            x = x + layer.fc2(nn.functional.gelu(layer.fc1(layer.encoder_attn_layer_norm(x))))
            x = layer.final_layer_norm(x)
        return self.head(x)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        size, n = self.width // self.heads, self.heads
        one = ((1, n, size, self.past), (1, n, self.past, size), (1, n, size, self.source), (1, n, self.source, size))
        return ((1, 1, self.width), *(shape for _ in self.layers for shape in one))


def _marian(part: str, vocabulary: int) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        config = transformers.MarianConfig(
            vocab_size=vocabulary,
            d_model=512,
            encoder_layers=6,
            decoder_layers=6,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            attn_implementation="eager",
            activation_function="swish",
        )
        model = transformers.MarianMTModel(config)
        layers = model.model.decoder.layers
        if part == "encoder":
            return Built(_Encoder(model.model.encoder, layers, "encoder_attn"), (_tokens(256),))
        step = _Step(layers, 8, model.lm_head, "encoder_attn", 255, 256)
        return Built(step, step.shapes())

    return build


def _whisper(
    part: str, width: int, layers: int, heads: int, *, decoders: int | None = None, mels: int = 80
) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        config = transformers.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=decoders or layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            num_mel_bins=mels,
            attn_implementation="eager",
        )
        model = transformers.WhisperForConditionalGeneration(config)
        blocks = model.model.decoder.layers
        if part == "encoder":
            return Built(_Encoder(model.model.encoder, blocks, "encoder_attn"), ((1, mels, 3000),))
        step = _Step(blocks, heads, model.proj_out, "encoder_attn", 199, 1500)
        return Built(step, step.shapes())

    return build


def _clip(transformers: Any) -> Any:
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "patch_size": 16,
    }
    return transformers.CLIPConfig(text_config=text, vision_config=vision, attn_implementation="eager")


def _clip_built() -> Built:
    import transformers

    named = {"pixel_values": _image(), "input_ids": _tokens(77), "attention_mask": _tokens(77)}
    return Built(transformers.CLIPModel(_clip(transformers)), named=named)


def _eager(name: str, **options: Any) -> Callable[[Any], Any]:
    return lambda transformers: getattr(transformers, name)(attn_implementation="eager", **options)


_TINY, _BASE = {"width": 384, "layers": 4, "heads": 6}, {"width": 512, "layers": 6, "heads": 8}

# AI Hub's model, or model/component where it has several -> how to build it.
TABLE: dict[str, Callable[[], Built]] = {
    # classification
    "resnet18": _vision("resnet18"),
    "resnet50": _vision("resnet50"),
    "resnet101": _vision("resnet101"),
    "resnext50": _vision("resnext50_32x4d"),
    "resnext101": _vision("resnext101_32x8d"),
    "wideresnet50": _vision("wide_resnet50_2"),
    "regnet": _vision("regnet_x_3_2gf"),
    "regnet_y_800mf": _vision("regnet_y_800mf"),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "shufflenet_v2": _vision("shufflenet_v2_x1_0"),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "mobilenet_v3_large": _vision("mobilenet_v3_large"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "mnasnet05": _vision("mnasnet0_5"),
    "googlenet": _vision("googlenet", init_weights=False, aux_logits=False),
    "inception_v3": _vision("inception_v3", init_weights=False),
    "densenet121": _vision("densenet121"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "efficientnet_b4": _vision("efficientnet_b4"),
    "efficientnet_v2_s": _vision("efficientnet_v2_s"),
    "convnext_tiny": _vision("convnext_tiny"),
    "convnext_base": _vision("convnext_base"),
    "vit": _vision("vit_b_16"),
    "swin_tiny": _vision("swin_t"),
    "swin_small": _vision("swin_s"),
    "swin_base": _vision("swin_b"),
    "beit": _timm("beit_base_patch16_224"),
    "levit": _timm("levit_128s"),
    "mobile_vit": _timm("mobilevit_s", 256),
    "dla102x": _timm("dla102x"),
    "nasnet": _timm("nasnetalarge"),
    "efficientformer": _timm("efficientformer_l1"),
    "efficientvit_b2_cls": _timm("efficientvit_b2"),
    "efficientvit_l2_cls": _timm("efficientvit_l2"),
    "sequencer2d": _timm("sequencer2d_s"),
    "mobilenet_v4": _timm("mobilenetv4_conv_medium"),
    "cavaface": _own(segmentation.IrSe, _image(112)),
    "resnet_3d": _video("r3d_18"),
    "resnet_mixed": _video("mc3_18"),
    "resnet_2plus1d": _video("r2plus1d_18"),
    "video_mae": _hf("VideoMAEForVideoClassification", _eager("VideoMAEConfig"), (1, 16, 3, 224, 224)),
    "yamnet": _own(segmentation.Yamnet, (1, 1, 96, 64)),
    # maps
    "fcn_resnet50": _segmentation("fcn_resnet50"),
    "deeplabv3_resnet50": _segmentation("deeplabv3_resnet50"),
    "deeplabv3_plus_mobilenet": _own(lambda: segmentation.DeepLab(_Low()), _image(520)),
    "bisenet": _bisenet,
    "ddrnet23_slim": _own(segmentation.Ddrnet, _image((1024, 2048))),
    "pidnet": _own(segmentation.Pidnet, _image((1024, 2048))),
    "ffnet_40s": _ffnet((4, 5, 6, 4), (64, 128, 192, 320), (2, 2, 2, 2), "B", (1024, 2048)),
    "ffnet_54s": _ffnet((5, 8, 8, 5), (64, 128, 192, 320), (2, 2, 2, 2), "B", (1024, 2048)),
    "ffnet_78s": _ffnet((6, 12, 12, 8), (64, 128, 192, 320), (2, 2, 2, 2), "B", (1024, 2048)),
    "ffnet_78s_lowres": _ffnet((6, 12, 12, 8), (64, 128, 192, 320), (1, 2, 2, 2), "C", (512, 1024)),
    "ffnet_122ns_lowres": _ffnet((16, 24, 20), (64, 64, 128, 256), (2, 2, 2), "C", (512, 1024)),
    "segformer_base": _hf("SegformerForSemanticSegmentation", _eager("SegformerConfig", num_labels=150), _image(512)),
    "midas": _midas,
    "depth_anything": _hf("DepthAnythingForDepthEstimation", _depth, _image(518)),
    "depth_anything_v2": _hf("DepthAnythingForDepthEstimation", _depth, _image(518)),
    "hrnet_pose": _hrnet("hrnet_w32", (256, 192), 17, every=False),
    "hrnet_face": _hrnet("hrnet_w18", (256, 256), 29, every=True),
    "posenet_mobilenet": _own(segmentation.PoseNet, _image((513, 257))),
    "easyocr/EasyOCRDetector": _craft,
    "aotgan": _own(segmentation.AotGan, _image(512), _image(512, 1)),
    # larger images
    "quicksrnetsmall": _sr(lambda: superresolution.QuickSR(32, 2)),
    "quicksrnetmedium": _sr(lambda: superresolution.QuickSR(32, 5)),
    "quicksrnetlarge": _sr(lambda: superresolution.QuickSR(64, 11)),
    "sesr_m5": _sr(superresolution.Sesr),
    "xlsr": _sr(superresolution.Xlsr),
    "real_esrgan_general_x4v3": _sr(superresolution.Srvgg),
    "real_esrgan_x4plus": _sr(superresolution.Rrdb),
    "esrgan": _sr(superresolution.Rrdb),
    # detection
    "yolov3": _own(detection.V3Tiny, _image(640)),
    "yolov5": _own(lambda: detection.Pan("5", 0.67, 0.75), _image(640)),
    "yolov7": _own(detection.V7Tiny, _image(640)),
    "yolov8_det": _own(lambda: detection.Pan("8", 0.33, 0.25), _image(640)),
    "yolov8_seg": _own(lambda: detection.Pan("8", 0.33, 0.25, masks=True), _image(640)),
    "yolov10_det": _own(lambda: detection.Pan("10", 0.33, 0.25), _image(640)),
    "yolov11_det": _own(lambda: detection.Pan("11", 0.5, 0.25), _image(640)),
    "yolov11_seg": _own(lambda: detection.Pan("11", 0.5, 0.25, masks=True), _image(640)),
    "yolox": _own(detection.Yolox, _image(640)),
    "fastsam_s": _own(lambda: detection.Pan("8", 0.33, 0.5, masks=True), _image(640)),
    "fastsam_x": _own(lambda: detection.Pan("8", 1.0, 1.25, 512, masks=True), _image(640)),
    "detr_resnet50": _detr("Detr", [3, 4, 6, 3]),
    "detr_resnet101": _detr("Detr", [3, 4, 23, 3]),
    "detr_resnet50_dc5": _detr("Detr", [3, 4, 6, 3], dilated=True),
    "detr_resnet101_dc5": _detr("Detr", [3, 4, 23, 3], dilated=True),
    "conditional_detr_resnet50": _detr("ConditionalDetr", [3, 4, 6, 3]),
    # text, speech
    "albert_base_v2_hf": _text("Albert", hidden_size=768, num_attention_heads=12, intermediate_size=3072),
    "bert_base_uncased_hf": _text("Bert"),
    "distil_bert_base_uncased_hf": _text("DistilBert"),
    "mobile_bert_uncased_google": _text("MobileBert"),
    "electra_bert_base_discrim_google": _text(
        "Electra",
        384,
        "PreTraining",
        hidden_size=768,
        embedding_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    ),
    "nomic_embed_text": _text("NomicBert", 128, ""),
    "openai_clip": _clip_built,
    **{
        f"opus_mt_{pair}/OpusMTEncoder": _marian("encoder", size)
        for pair, size in (("en_es", 65001), ("es_en", 65001), ("en_zh", 65001), ("zh_en", 65001))
    },
    **{
        f"opus_mt_{pair}/OpusMTDecoder": _marian("decoder", size)
        for pair, size in (("en_es", 65001), ("es_en", 65001), ("en_zh", 65001), ("zh_en", 65001))
    },
    "whisper_tiny/HfWhisperEncoder": _whisper("encoder", **_TINY),
    "whisper_tiny/HfWhisperDecoder": _whisper("decoder", **_TINY),
    "whisper_base/HfWhisperEncoder": _whisper("encoder", **_BASE),
    "whisper_base/HfWhisperDecoder": _whisper("decoder", **_BASE),
    "whisper_small/HfWhisperEncoder": _whisper("encoder", 768, 12, 12),
    "whisper_small/HfWhisperDecoder": _whisper("decoder", 768, 12, 12),
    "whisper_large_v3_turbo/HfWhisperEncoder": _whisper("encoder", 1280, 32, 20, decoders=4, mels=128),
    "whisper_large_v3_turbo/HfWhisperDecoder": _whisper("decoder", 1280, 32, 20, decoders=4, mels=128),
}


def operators(name: str) -> list[Operator]:
    """What one run of the network does. Raises KeyError on a name that is not in TABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _define_compiled()
        with torch.device("meta"):
            try:
                built = TABLE[name]()
            except (NotImplementedError, RuntimeError):  # its constructor computes with values
                built = None
        if built is None:
            built = TABLE[name]()
        try:
            return traced.operators(built.module, built.inputs, built.named)
        except RuntimeError as problem:  # it looks at values on the way (masks): run it for real
            if "meta" not in str(problem):
                raise
            built = TABLE[name]()
            return traced.operators(built.module, built.inputs, built.named, device="cpu")
