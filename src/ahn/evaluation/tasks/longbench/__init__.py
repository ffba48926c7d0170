"""LongBench (arXiv 2308.14508) as lm-eval has it, scored as the benchmark scores."""
