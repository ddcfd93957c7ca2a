"""Dossiers of every kind, made by hand: what :mod:`laconic.story.dossier` gathers, without a search."""

from __future__ import annotations

import copy
import random

import pytest

PRUNE = {"step": "PruneChannels", "layers": {"conv1": 0.125, "conv2": 0.5}}
FINE_TUNE = {"step": "FineTune", "epochs": 20.0}
QUANTIZE = {"step": "Quantize", "ranges": "minmax"}
BYTES, MACS, PARAMS = 377_465, 2_379_008, 94_186
CERTIFICATE = {
    "metric": "top1",
    "drop": 0.005,
    "bound": 0.012886,
    "max_drop": 0.02,
    "confidence": 0.95,
    "n": 600,
    "lost": 3,
    "won": 0,
    "test": "exact unconditional, paired",
    "tested": 2,
    "opening": 1,
    "independent": True,
}


def _trial(recipe, *, speedup=None, drop=None, file_bytes=None, **settings):
    """A row; ``speedup`` and ``drop`` are (value, low, high)."""
    found = {}
    if file_bytes is not None:
        found = {name: [float(v)] * 3 for name, v in (("file_bytes", file_bytes), ("macs", MACS), ("params", PARAMS))}
        found["score"] = [0.5] * 3
    if drop is not None:
        found |= {"score": [0.99 - drop[0]] * 3, "drop": list(drop), "expected_bound": [drop[0] + 0.008] * 3}
    if speedup is not None:
        found |= {"speedup": list(speedup), "latency": [0.03 / speedup[0]] * 3, "baseline_latency": [0.03] * 3}
    row = {"key": "", "recipe": recipe, "label": "", "chosen": False, "passes": False, "rejected": None, "error": None}
    return {**row, "seconds": 1.25, "measurements": found, **settings}


def _trials(best):
    return [
        _trial([], speedup=(0.99, 0.97, 1.01), drop=(0.0, 0.0, 0.01), file_bytes=BYTES),
        _trial([QUANTIZE], speedup=(1.39, 1.35, 1.45), drop=(0.0, 0.0, 0.01), file_bytes=102_578, passes=True),
        _trial(best, speedup=(1.727, 1.68, 1.76), drop=(0.0134, -0.0004, 0.031), file_bytes=33_071, chosen=True),
        _trial([PRUNE], speedup=(1.2, 1.1, 1.3), drop=(0.031, 0.015, 0.05), file_bytes=200_000),
        _trial([PRUNE, QUANTIZE], file_bytes=19_251, rejected="after 128 of 299 samples its drop was clear"),
        _trial([FINE_TUNE], error="the worker ran out of memory"),
        _trial([PRUNE, FINE_TUNE], speedup=(2.1, 1.2, 3.0), drop=(0.01, 0.0, 0.02), file_bytes=90_000,
               rejected="its timing stayed noisy"),
    ]  # fmt: skip


def _layers():
    before = [["", 0, 0], ["conv1", 18_432, 288], ["bn1", 0, 64], ["conv2", 1_179_648, 18_432], ["fc", 1280, 1290]]
    after = [["", 0, 0], ["conv1", 16_128, 280], ["conv2", 516_096, 8_192], ["fc", 1280, 1290], ["quantizers.0", 0, 0]]
    return before, after


def _side(key, layers, score, file_bytes, latency_ms, macs, params, **settings):
    return {
        "key": key,
        "score": score,
        "search_score": score - 0.01,
        "file_bytes": file_bytes,
        "packed_bytes": file_bytes * 9 // 10,
        "payload_bytes": file_bytes * 8 // 10,
        "latency_ms": latency_ms,
        "macs": macs,
        "params": params,
        "unsupported": {},
        "layers": layers,
        "operators": {},
        **settings,
    }


def _machine():
    return {
        "processor": "A Processor",
        "architecture": "x86_64",
        "features": ["avx2", "avx512_vnni"],
        "cores": 2,
        "memory_gib": 23.5,
        "system": "Linux 6.18",
        "python": "3.11.7",
    }


def make_dossier(best=None, **changes):
    """A dossier of a certified digits network; ``changes`` replace its entries."""
    best = [PRUNE, FINE_TUNE, QUANTIZE] if best is None else best
    before, after = _layers()
    splits = {"train": 898, "search": 299, "holdout": 600}
    rows = [{"discordance": d, "least_floor": f, "samples_needed": 600} for d, f in ((0.0, 0.005), (0.04, 0.0141))]
    dossier = {
        "laconic": "0.1.0",
        "created": "2026-11-20T16:08:09+00:00",
        "status": "certified",
        "target": "onnxruntime:cpu,threads=1,batch=1",
        "goal": {"minimize": "latency", "max_drop": 0.02, "relative": False, "confidence": 0.95, "max_latency": None,
                 "max_size": None, "budget": {"seconds": 60.0, "trials": None}},
        "model": {"source": "zoo:digits-cnn-32", "fingerprint": "27" * 32, "note": ""},
        "data": {"fingerprint": "643946ca0a12a648", "source": "digits", "kind": "digits", "n": splits, "seed": 0,
                 "labelled": True, "indices": "abf4404ce4cf2c77", "preprocess": "not applied",
                 "corrupt": {"count": 0, "names": []}, "content_hash": "all bytes", "rule": "cut from one set"},
        "metric": {"name": "top1", "binary": True, "chance": 0.1},
        "splits": splits,
        "calibration": 128,
        "trainable": True,
        "labels": [str(i) for i in range(10)],
        "preprocess": None,
        "input_shape": [1, 8, 8],
        "libraries": {"torch": "2.15.0", "onnxruntime": "1.31.1"},
        "machine": _machine(),
        "seed": 0,
        "keep": [],
        "reach": {"n": 600, "floor": 0.02, "rows": rows, "within_reach": True},
        "baseline": _side("cbab8f80", before, 596 / 600, BYTES, 0.0363, MACS, PARAMS),
        "best": _side("b5ab538e", after, 593 / 600, 33_071, 0.0215, 1_195_936, 25_874, recipe=best,
                      unsupported={"aten::mystery": 5}),
        "recipe": best,
        "facts": [{"removed": {"conv1": [3, 4], "conv2": list(range(64))}}, {"first_loss": 4.635, "steps": 280},
                  {"folded": [["conv1", "bn1"]]}],
        "ratio": {
            **dict.fromkeys(("size", "packed"), BYTES / 33_071),
            "latency": {"value": 1.68484, "low": 1.64896, "high": 1.72813},
        },
        "timing": {"drift": 1.0152, "clocks": 1.0, "noisy": False, "calls_per_burst": 104},
        "certificate": dict(CERTIFICATE),
        "tested": [{"key": "a46ad84b", "recipe": [QUANTIZE], "p": 1.61e-05, "passed": True},
                   {"key": "b5ab538e", "recipe": best, "p": 0.00439, "passed": True}],
        "minimality": {"below the floor": ["a smaller one", "a smaller one"], "not better": ["no faster one"],
                       "undecided": [], "not tried": ["an untried one"]},
        "trials": _trials(best),
        "after_steps": [_trial(best[:1], file_bytes=200_000, rejected="after 128 of 299 samples its drop was clear"),
                        _trial(best[:2], speedup=(1.2, 1.1, 1.3), drop=(0.01, 0.0, 0.02), file_bytes=200_000),
                        _trial(best, speedup=(1.727, 1.68, 1.76), drop=(0.0134, 0.0, 0.031), file_bytes=33_071)],
    }  # fmt: skip
    return copy.deepcopy({**dossier, **changes})


def _uncertified():
    certificate = {**CERTIFICATE, "drop": 0.015, "bound": 0.02672, "lost": 10, "won": 1}
    tested = [{"key": "b5ab538e", "recipe": [QUANTIZE], "p": 0.29, "passed": False},
              {"key": "a46ad84b", "recipe": [PRUNE], "p": 0.4, "passed": False}]  # fmt: skip
    found = make_dossier(status="uncertified", certificate=certificate, tested=tested)
    found["best"]["score"] = 587 / 600
    return found


def _agreement():
    certificate = {**CERTIFICATE, "metric": "agreement", "max_drop": 0.05, "drop": 0.02, "bound": 0.0334, "lost": 12,
                   "opening": 3, "independent": False}  # fmt: skip
    found = make_dossier(certificate=certificate, metric={"name": "agreement", "binary": True, "chance": None})
    found["data"]["labelled"], found["goal"]["max_drop"] = False, 0.05
    found["baseline"]["score"], found["best"]["score"] = 1.0, 0.98
    found["preprocess"] = {"channels": "RGB", "resize": 256, "interpolation": "bilinear", "crop": [224, 224],
                           "divide": 255.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
                           "layout": "NCHW"}  # fmt: skip
    found["data"]["corrupt"] = {"count": 2, "names": ["a.jpg: truncated", "b.jpg: not a picture"]}
    return found


def _running():
    return make_dossier(status="uncertified", certificate=None, tested=[])


def _slower():
    found = _uncertified()
    found["ratio"] = {"size": 0.8, "packed": 0.8, "latency": {"value": 0.5, "low": 0.45, "high": 0.55}}
    found["timing"]["noisy"] = True
    return found


def _scored():
    certificate = {**CERTIFICATE, "metric": "iou", "lost": None, "won": None, "test": "betting, paired"}
    return make_dossier(certificate=certificate, metric={"name": "iou", "binary": False, "chance": None})


def _one_trial():
    found = make_dossier()
    found["trials"] = [t for t in found["trials"] if t["chosen"] or not t["recipe"]]
    found["minimality"] = {"below the floor": [], "not better": [], "undecided": [], "not tried": []}
    return found


def _large():
    """200 trials of every kind on OpenVINO, and 200 layers."""
    random.seed(7)
    names = [f"features.{i}.conv.{i % 3}.0" for i in range(200)]
    trials = make_dossier()["trials"][:1]
    best = [{**PRUNE, "layers": dict.fromkeys(names[:40], 0.5)}, FINE_TUNE, QUANTIZE]
    for i in range(199):
        speed, share = random.uniform(0.4, 6.0), random.uniform(0.03, 1.1)
        drop = max(0.0, random.gauss(0.004 * speed, 0.01)) if i % 17 else 0.6
        recipe = [{**PRUNE, "layers": {name: round(random.random(), 3) for name in random.sample(names, 9)}}, QUANTIZE]
        interval, times = (drop, drop - 0.008, drop + 0.011), (speed, speed * 0.96, speed * 1.04)
        measured = {"speedup": times, "drop": interval, "file_bytes": share * 14e6}
        kinds = [
            {"error": "the deployed file does not agree with the model: it begins at layer features.3 " * 2},
            {"file_bytes": 3e6, "rejected": "after 150 of 300 samples its drop was clear"},
            {**measured, "rejected": "its timing stayed noisy"},
            *[{**measured, "passes": drop < 0.012 and speed > 1}] * 5,
        ]
        trials.append(_trial(recipe, **kinds[i % len(kinds)]))
    trials.append(_trial(best, speedup=(4.4, 4.3, 4.5), drop=(0.009, 0.0, 0.019), file_bytes=1.2e6, chosen=True))
    found = make_dossier(best, trials=trials, target="openvino:cpu,threads=1,batch=1")
    found["baseline"]["layers"] = [[name, 1e7 * (i % 7 + 1), 1000 * (i + 1)] for i, name in enumerate(names)]
    found["best"]["layers"] = [[name, 4e6 * (i % 7 + 1), 400 * (i + 1)] for i, name in enumerate(names[:180])]
    found["ratio"] = {"size": 11.6, "packed": 11.6, "latency": {"value": 4.31, "low": 4.2, "high": 4.4}}
    found["model"]["source"] = "timm:mobilenetv3_large_100@" + "a_very_long_folder_name/" * 9 + "weights.safetensors"
    found["trials"][0]["measurements"]["file_bytes"] = [14e6] * 3
    found["baseline"]["file_bytes"], found["best"]["file_bytes"] = 14_000_000, 1_200_000
    return found


KINDS = {
    "certified": make_dossier,
    "uncertified": _uncertified,
    "agreement": _agreement,
    "running": _running,
    "slower": _slower,
    "scored": _scored,
    "one trial": _one_trial,
    "large": _large,
}


@pytest.fixture(name="make_dossier")
def _make_dossier():
    return make_dossier


@pytest.fixture(params=KINDS)
def dossier(request):
    """Each kind of dossier."""
    return KINDS[request.param]()


@pytest.fixture
def kind():
    """The dossier of a kind."""
    return lambda name: KINDS[name]()
