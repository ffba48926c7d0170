"""The tokens of many copies of a text, all but the first with exchanged words."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ahn.embedded.corpus import Document
from ahn.embedded.renaming import rare_words, rename
from ahn.embedded.tokenizer import END_OF_TEXT


def encode_copies(
    documents: tuple[Document, ...],
    tokenizer: Tokenizer,
    *,
    copies: int,
    share: float,
    seed: int,
    workers: int,
) -> Tensor:
    """Token ids of all copies of the text, one after the other: `[N]`, int32.

    Args:
        share: of each package's rare words that are exchanged in a copy, see `renaming.rename`.
        workers: processes.
    """
    rare = rare_words(documents)
    jobs = [(documents, rare, share if copy else 0.0, f"{seed}/{copy}") for copy in range(copies)]
    text = tokenizer.to_str()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        parts = list(pool.map(_encode_copy, jobs, [text] * len(jobs)))
    return torch.cat([torch.frombuffer(part, dtype=torch.int32) for part in parts])


def _encode_copy(
    job: tuple[tuple[Document, ...], list[str], float, str], tokenizer: str
) -> bytearray:
    documents, rare, share, seed = job
    if share:
        documents = tuple(rename(documents, rare, share, seed))
    encoder = Tokenizer.from_str(tokenizer)
    end = encoder.token_to_id(END_OF_TEXT)
    ids = torch.tensor(
        [i for _, text in documents for i in [*encoder.encode(text).ids, end]], dtype=torch.int32
    )
    return bytearray(ids.numpy().tobytes())
