"""The whole work from a model to its package: the one place that brings the rooms together."""
