"""Portable models: a PyTorch model as data, and the interpreter that runs it without running its code."""
