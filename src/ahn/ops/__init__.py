"""Pure functions on tensors: no module, no transformers."""
