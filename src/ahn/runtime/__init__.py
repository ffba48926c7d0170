"""How a forward is run: prompts in chunks, decoding steps."""
