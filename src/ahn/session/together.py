"""Questions to one or many sessions of a model, answered as the rows of one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ahn.generation import prefill
from ahn.generation.streaming import choose, warpers
from ahn.layer.cache import AHNCache
from ahn.runtime.decode_step import DecodeStep
from ahn.session.answer import Answer
from ahn.session.model_lock import lock_of
from ahn.session.sampling import Sampling

if TYPE_CHECKING:
    from ahn.session.session import Session


def ask_together(
    sessions: Sequence[Session], questions: Sequence[str], **options: Any
) -> Iterator[tuple[int, str]]:
    """Ask each session its question, and decode all answers as one batch.

    Each answer is that of the session alone, up to the rounding of a batch. A session whose answer
    ends leaves the batch. Closing the iterator ends all answers where they are.

    Args:
        sessions: of one model, each once.
        options: see `Session.ask`.

    Yields:
        Which session, and the next piece of its answer.

    Raises:
        ValueError: as `Session.ask`, or the sessions are not of one model. Whatever is raised, a
            session whose answer has not ended is then as before.
    """
    if not sessions or len(sessions) != len(questions):
        raise ValueError(
            f"questions: expected one for each session, got {len(questions)} for {len(sessions)}"
        )
    model = sessions[0].model
    if any(x.model is not model for x in sessions) or len({*map(id, sessions)}) < len(sessions):
        raise ValueError("sessions: expected different ones of one model, got others")
    if not all(question.strip() for question in questions):
        raise ValueError("question: expected some text, got none")
    return _answered(sessions, questions, Sampling(**options))


def _answered(
    sessions: Sequence[Session], questions: Sequence[str], sampling: Sampling
) -> Iterator[tuple[int, str]]:
    """Run answers to their ends; on an error all sessions are as before."""
    model = sessions[0].model
    with _claimed(sessions):
        before = [session.state.fork() for session in sessions]
        try:
            answers = [Answer(*each) for each in zip(sessions, questions, before)]
            with lock_of(model):
                batch = Batch(answers, sampling)
            while batch.active:
                with lock_of(model):
                    pieces = batch.step()
                try:
                    yield from [(answers.index(x), piece) for x, piece in pieces if piece]
                except GeneratorExit:
                    batch.leave(batch.active)
                    raise
        except GeneratorExit:
            raise
        except BaseException:
            for session, state in zip(sessions, before):
                if session.state.path == state.path:  # its answer has not ended
                    session.state = state
            raise


@contextmanager
def _claimed(sessions: Sequence[Session]) -> Iterator[None]:
    """Within the context nothing else is asked of these sessions."""
    with ExitStack() as stack:
        for session in sessions:
            session.claim()
            stack.callback(session.release)
        yield


class Batch:
    """Answers under way: the rows of one cache.

    Attributes:
        active: the answers that have not ended, one for each row.
    """

    def __init__(self, answers: list[Answer], sampling: Sampling) -> None:
        self.active, self.sampling = list(answers), sampling
        self.model = answers[0].session.model
        self.warp = warpers(sampling.temperature, sampling.top_k, sampling.top_p)
        self.logits: Any = None
        self._read()

    def _read(self) -> None:
        """Read the questions, each alone, and join what was read."""
        read: list[tuple[Tensor, AHNCache]] = []
        for answer in self.active:
            size = answer.session.prefill_chunk_size
            cache = answer.session.state.cache
            read.append(prefill(self.model, answer.ids, cache, prefill_chunk_size=size))
        caches = [cache for _, cache in read]
        self.cache = caches[0] if len(caches) == 1 else AHNCache.join(caches)
        self.decode = DecodeStep(self.model, self.cache)
        self.logits = torch.cat([logits for logits, _ in read])

    def step(self) -> list[tuple[Answer, str]]:
        """Give every active answer its next token; what each says by it."""
        if self.logits is None:
            last = [answer.said.ids[-1] for answer in self.active]
            self.logits = self.decode(torch.tensor(last, device=self.model.device))
        tokens = choose(self.logits, self.warp, self.sampling.generator).tolist()
        self.logits, active = None, self.active
        pieces = [
            (answer, answer.take(token, self.sampling.max_new_tokens))
            for answer, token in zip(active, tokens)
        ]
        self.leave([answer for answer in active if answer.has_ended])
        return pieces

    def leave(self, ended: list[Answer]) -> None:
        """Give sessions back what their rows of the cache hold, and go on with the others."""
        rows = [row for row, answer in enumerate(self.active) if answer not in ended]
        for row, answer in enumerate(self.active):
            if answer in ended:
                is_alone = len(self.active) == 1
                answer.finish(self.cache if is_alone else self.cache.row(row))
        if ended and rows:
            self.cache.batch_select_indices(torch.tensor(rows))
            self.decode = DecodeStep(self.model, self.cache)
        self.active = [self.active[row] for row in rows]
