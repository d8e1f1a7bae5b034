"""The mathematics: plain functions on tensors and arrays, importable and testable alone."""
