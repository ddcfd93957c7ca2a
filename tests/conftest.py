"""What all tests share: one thread, so that they leave the machine's other cores alone and repeat to the bit."""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("laconic", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("laconic")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
