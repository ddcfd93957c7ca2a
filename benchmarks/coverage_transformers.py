"""Networks of transformers with tiny configurations and random weights, each made by a function of its own."""

from __future__ import annotations

import importlib
from typing import Any

hf: Any = importlib.import_module("transformers")  # its configurations do not tell their arguments' types

_TEXT = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}


def resnet() -> Any:
    return hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=16, **_STAGES, num_labels=10))


def mobilenet_v1() -> Any:
    return hf.MobileNetV1ForImageClassification(hf.MobileNetV1Config(depth_multiplier=0.25, num_labels=10))


def mobilenet_v2() -> Any:
    return hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.35, num_labels=10))


def regnet() -> Any:
    config = hf.RegNetConfig(embedding_size=16, **_STAGES, groups_width=8, num_labels=10)
    return hf.RegNetForImageClassification(config)


def convnext() -> Any:
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**_STAGES, num_labels=10))


def vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**_PICTURE, image_size=64, patch_size=16, num_labels=10))


def swin() -> Any:
    config = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=24, depths=[1, 1], num_heads=[4, 8], window_size=4, num_labels=10
    )
    return hf.SwinForImageClassification(config)


def segformer() -> Any:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], num_attention_heads=[1, 2, 4, 8], decoder_hidden_size=32
    )
    return hf.SegformerForSemanticSegmentation(config)


def detr() -> Any:
    backbone = hf.ResNetConfig(embedding_size=16, **_STAGES, out_features=["stage4"])
    config = hf.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        num_queries=5,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    return hf.DetrForObjectDetection(config)


def yolos() -> Any:
    config = hf.YolosConfig(**_PICTURE, image_size=[64, 64], patch_size=16, num_detection_tokens=5)
    return hf.YolosForObjectDetection(config)


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT, intermediate_size=96, num_key_value_heads=4, use_cache=False))


def llama_grouped() -> Any:
    config = hf.LlamaConfig(**{**_TEXT, "num_attention_heads": 8}, intermediate_size=96, num_key_value_heads=4)
    config.use_cache = False
    return hf.LlamaForCausalLM(config)


def bert() -> Any:
    return hf.BertForSequenceClassification(hf.BertConfig(**_TEXT, intermediate_size=96))


def gpt2() -> Any:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=99, n_embd=48, n_layer=2, n_head=4, use_cache=False))
