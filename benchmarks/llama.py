"""A Llama of two million parameters that reads Tiny Shakespeare, a character at a time, for the benchmarks of pruning.

``python -m benchmarks.llama`` trains it from seeded weights on the first nine tenths of the text, on a graphics card if
there is one, into ``benchmarks/checkpoints/llama-shakespeare.safetensors`` (float16). As a task it is a classifier: of
:data:`CONTEXT` characters the one that follows, on windows of the last tenth that do not overlap.
"""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import records
from benchmarks.networks import Network
from laconic import data, models

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "llama-shakespeare.safetensors"
MODEL = f"{Path(__file__).resolve()}:trained"
CONTEXT = 64
SEED = 0
STEPS, BATCH, LR, WEIGHT_DECAY, WARMUP = 1200, 64, 2e-3, 0.1, 100
_TRAINING = 0.9


class NextCharacter(nn.Module):
    """Characters ``(n, CONTEXT)``, int64, to the scores of what follows the last, ``(n, characters)``."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        transformers: Any = importlib.import_module("transformers")  # it does not tell its arguments' types
        config = transformers.LlamaConfig(
            vocab_size=characters,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=CONTEXT,
            use_cache=False,
            tie_word_embeddings=False,
        )
        self.llama = transformers.LlamaForCausalLM(config)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.llama(characters, logits_to_keep=1).logits
        return scores[:, 0]


def trained() -> nn.Module:
    """The network with the weights of the checkpoint."""
    state = safetensors.torch.load_file(CHECKPOINT)
    model = NextCharacter(state["llama.lm_head.weight"].shape[0])
    model.load_state_dict({name: weight.float() for name, weight in state.items()})
    return model


def load() -> Network:
    """The trained network, and windows of the text as its task; skips the benchmark where the checkpoint is absent."""
    if not CHECKPOINT.exists():
        raise records.Skipped(f"{CHECKPOINT.name} is not there: python -m benchmarks.llama")
    before, after, _ = _text()
    task = data.from_splits({"train": _windows(before), "val": _windows(after)}, trainable=False)
    return Network(MODEL, models.load(MODEL), task)


def _text() -> tuple[Any, Any, int]:
    """The text that trains and the text that tests, as numbers; of so many characters."""
    with gzip.open(records.data("text/tinyshakespeare.txt.gz")) as file:
        known, text = np.unique(np.frombuffer(file.read(), np.uint8), return_inverse=True)
    start = int(_TRAINING * len(text))
    return text[:start], text[start:], len(known)


def _windows(text: Any) -> tuple[Any, Any]:
    starts = np.arange(0, len(text) - CONTEXT, CONTEXT)
    return text[starts[:, None] + np.arange(CONTEXT)], text[starts + CONTEXT]


def main() -> None:
    """Train and write the checkpoint: every character of every window is learned from."""
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text, _, characters = _text()
    text = torch.as_tensor(text, device=device)
    model, say = NextCharacter(characters).to(device), records.progress("llama")
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=WARMUP / STEPS)
    for step in range(STEPS):
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), device=device)
        window = text[starts + torch.arange(CONTEXT + 1, device=device)]
        with torch.autocast(device, torch.bfloat16):
            scores = model.llama(window[:, :-1]).logits
        loss = cross_entropy(scores.float().flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        say(f"of the steps, loss {loss.item():.3f}", step / STEPS)
    notes = {"made by": "python -m benchmarks.llama", "steps": str(STEPS), "batch": str(BATCH), "seed": str(SEED)}
    state = {name: weight.detach().half().cpu().contiguous() for name, weight in model.state_dict().items()}
    safetensors.torch.save_file(state, CHECKPOINT, notes)


if __name__ == "__main__":
    main()
