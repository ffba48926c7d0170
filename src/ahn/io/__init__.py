"""Atomic files, text in chunks, safetensors folders with checksums."""
