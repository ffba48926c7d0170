"""Attached models in serving engines: paged caches, requests at once, the plug-in for vLLM."""
