"""Files written whole, text in pieces, safetensors folders with checksums."""
