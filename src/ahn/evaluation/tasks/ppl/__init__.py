"""How well long texts are predicted, by position: nats per token and bits per byte."""
