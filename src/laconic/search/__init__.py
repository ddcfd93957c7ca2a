"""Which recipes to try next, and which of those tried is best: pure functions of what was measured."""
