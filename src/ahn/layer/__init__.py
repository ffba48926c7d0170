"""One attention layer: what it holds, and how a token is written, read and attended to."""
