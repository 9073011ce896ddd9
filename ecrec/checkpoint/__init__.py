"""Checkpoints as files: what is in them, how they are read, checked and taken elsewhere (docs/checkpoints.md)."""
