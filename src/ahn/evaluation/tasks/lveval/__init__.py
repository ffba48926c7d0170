"""LV-Eval (arXiv 2402.05136): 11 data sets in English and Chinese, each at 16k to 256k words."""
