"""The fixtures of whole stories."""

from __future__ import annotations

from tests.stories import inline

__all__ = ["inline"]
