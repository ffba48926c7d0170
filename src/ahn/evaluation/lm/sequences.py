"""Which token sequences to run for a set of scoring requests: requests share what they can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Tokens = tuple[int, ...]
Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context (at least one) and of the continuation to score."""


@dataclass(frozen=True)
class Span:
    """A continuation to score within a sequence.

    Attributes:
        request: index of the request.
        first: position of the input token whose logits predict the first target.
        targets: the continuation's tokens.
    """

    request: int
    first: int
    targets: Sequence[int]

    @property
    def last(self) -> int:
        """Position after the input token whose logits predict the last target."""
        return self.first + len(self.targets)


@dataclass(frozen=True)
class Branch:
    """A continuation that has `inputs` of its own from position `span.first` of a sequence on."""

    span: Span
    inputs: Tokens


@dataclass
class ScoredSequence:
    """Input tokens that the model sees once, with all continuations scored on them.

    Attributes:
        spans: continuations that are part of the sequence.
        branches: continuations that share only its beginning.
    """

    inputs: Tokens
    spans: list[Span] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def needed_prefix(self) -> int:
        """Tokens that another sequence must begin with to score all of this one as branches."""
        spans = [*self.spans, *(branch.span for branch in self.branches)]
        return max(span.first for span in spans)

    def all_branches(self) -> list[Branch]:
        """All its continuations, as branches."""
        from_spans = [Branch(s, self.inputs[s.first : s.last]) for s in self.spans]
        return from_spans + self.branches


def plan_sequences(requests: Sequence[Request]) -> list[ScoredSequence]:
    """Sequences that cover all requests.

    A request whose input is the beginning of another's becomes a span of that sequence: the needles
    of a haystack, the stretches of a long text. One that only shares its context with another
    becomes a branch: the choices of a question.
    """
    inputs = [(*context, *continuation[:-1]) for context, continuation in requests]
    sequences: list[ScoredSequence] = []
    # In lexicographic order a beginning comes right before all that it begins.
    for index in sorted(range(len(requests)), key=lambda i: inputs[i], reverse=True):
        tokens = inputs[index]
        if not sequences or sequences[-1].inputs[: len(tokens)] != tokens:
            sequences.append(ScoredSequence(tokens))
        context, continuation = requests[index]
        sequences[-1].spans.append(Span(index, len(context) - 1, continuation))
    return _with_branches(sequences)


def _with_branches(sequences: list[ScoredSequence]) -> list[ScoredSequence]:
    """Make a sequence branches of its neighbour in lexicographic order where they share enough.

    A neighbour takes it only if that saves more than half of its tokens, since branches run one by
    one and sequences in batches. Only neighbours need to be asked: what two sequences share, all
    between them in the order share too.
    """
    common = [_common_prefix(a.inputs, b.inputs) for a, b in pairwise(sequences)]
    remaining = list(sequences)
    for sequence in sorted(sequences, key=len):
        place = next(i for i, each in enumerate(remaining) if each is sequence)
        left = common[place - 1] if place else -1
        right = common[place] if place < len(common) else -1
        needed = sequence.needed_prefix
        if max(left, right) < needed or 2 * needed <= len(sequence):
            continue
        neighbour = remaining[place - 1] if left >= right else remaining[place + 1]
        neighbour.branches += sequence.all_branches()
        del remaining[place]
        if left >= 0 and right >= 0:
            common[place - 1 : place + 1] = [min(left, right)]
        else:
            del common[place - 1 if place else 0]
    return remaining


def _common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two inputs begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def like_length_batches(
    sequences: Sequence[ScoredSequence], size: int
) -> Iterator[list[ScoredSequence]]:
    """Batches of at most `size`, longest first; no row is more than half padding."""
    batch: list[ScoredSequence] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        if batch and (len(batch) == size or 2 * len(sequence) < len(batch[0])):
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch
