"""Architectures of the field that no kept library has: the one table of their names."""

from __future__ import annotations

from laconic.models.zoo import (
    cifar_resnet,
    digits_cnn,
    lenet,
    mlperf_tiny,
    mobilenet_v1,
    mobilenet_v2,
    squeezenet,
    vgg,
    vit,
)
from laconic.models.zoo.entry import Entry

__all__ = ["ZOO", "Entry"]

ZOO: dict[str, Entry] = {
    "lenet-300-100": lenet.LENET_300_100,
    "lenet-5-caffe": lenet.LENET_5_CAFFE,
    "cifar-resnet-20": cifar_resnet.entry(20),
    "cifar-resnet-32": cifar_resnet.entry(32),
    "cifar-resnet-56": cifar_resnet.entry(56),
    **{f"mobilenet-v1-{w}-{r}": mobilenet_v1.entry(w, r) for w in (0.25, 0.5, 0.75, 1.0) for r in (128, 160, 192, 224)},
    "mobilenet-v2-1.0-224": mobilenet_v2.MOBILENET_V2,
    "squeezenet-1.1": squeezenet.SQUEEZENET_1_1,
    "mlperf-tiny-resnet-8": mlperf_tiny.RESNET_8,
    "mlperf-tiny-ds-cnn": mlperf_tiny.DS_CNN,
    **{f"digits-cnn-{width}": digits_cnn.entry(width) for width in (16, 32, 64, 128)},
    "vit-fashion": vit.VIT_FASHION,
    "vgg-fashion": vgg.VGG_FASHION,
    "vgg-cifar": vgg.VGG_CIFAR,
}
