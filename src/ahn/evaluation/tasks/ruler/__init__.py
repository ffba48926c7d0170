"""RULER (arXiv 2404.06654) as lm-eval makes it, with as many samples as asked, also offline."""
