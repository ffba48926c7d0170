"""Speed and memory of prefill, decoding, batches and kernels, compared with other attention."""

from ahn.bench.batch import bench_batch
from ahn.bench.decode import bench_decode
from ahn.bench.kernels import bench_kernels
from ahn.bench.machine import environment, measure_ceilings
from ahn.bench.models import METHODS, SHAPES, BenchModel, build
from ahn.bench.prefill import bench_prefill, profile_prefill

__all__ = [
    "METHODS",
    "SHAPES",
    "BenchModel",
    "bench_batch",
    "bench_decode",
    "bench_kernels",
    "bench_prefill",
    "build",
    "environment",
    "measure_ceilings",
    "profile_prefill",
]
