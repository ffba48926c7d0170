"""InfiniteBench (arXiv 2402.13718) as lm-eval has it, En.QA scored as the benchmark scores."""
