"""The table of steps: a technique is one file and one line here."""

from __future__ import annotations

from laconic.core import Step
from laconic.steps.cluster.hashed import HashedNets
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize
from laconic.steps.factorize.cp import CP
from laconic.steps.factorize.separable import DepthwiseSeparable
from laconic.steps.factorize.spatial import SpatiallySeparable
from laconic.steps.factorize.svd import LowRank
from laconic.steps.factorize.tucker import Tucker2
from laconic.steps.prune.blocks import PruneBlocks
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.prune.gradual import PruneGradually
from laconic.steps.prune.heads import PruneHeads
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.adaround import AdaRound
from laconic.steps.quantize.binary import Binary
from laconic.steps.quantize.cast import Cast
from laconic.steps.quantize.cast_weights import CastWeights
from laconic.steps.quantize.epr import EPR
from laconic.steps.quantize.equalize import Equalize
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.lsq import LSQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.rate_distortion import RateDistortion
from laconic.steps.quantize.reconstruct import Reconstruct
from laconic.steps.quantize.smooth import Smooth
from laconic.steps.quantize.ternary import Ternary
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.fine_tune import FineTune
from laconic.steps.train.slim import Slim

STEPS: dict[str, type[Step]] = {
    "PruneChannels": PruneChannels,
    "LowRank": LowRank,
    "Tucker2": Tucker2,
    "CP": CP,
    "SpatiallySeparable": SpatiallySeparable,
    "DepthwiseSeparable": DepthwiseSeparable,
    "PruneHeads": PruneHeads,
    "PruneBlocks": PruneBlocks,
    "PruneWeights": PruneWeights,
    "PruneGradually": PruneGradually,
    "Slim": Slim,
    "FineTune": FineTune,
    "Equalize": Equalize,
    "Smooth": Smooth,
    "Quantize": Quantize,
    "QuantizeWeights": QuantizeWeights,
    "GPTQ": GPTQ,
    "AdaRound": AdaRound,
    "Reconstruct": Reconstruct,
    "LSQ": LSQ,
    "RateDistortion": RateDistortion,
    "EPR": EPR,
    "Ternary": Ternary,
    "Binary": Binary,
    "Cluster": Cluster,
    "HashedNets": HashedNets,
    "ProductQuantize": ProductQuantize,
    "Cast": Cast,
    "CastWeights": CastWeights,
}
