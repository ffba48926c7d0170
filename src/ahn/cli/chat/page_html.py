"""HTML beside the talk: the text with its sinks, window and slots marked, and the cache's bytes."""

from __future__ import annotations

from html import escape

from ahn.cli.chat.talk import MIB
from ahn.session import Session
from ahn.session.held import full_attention_nbytes, held
from ahn.session.kept_text import OMITTED, SLOT, Stretch, kept_text

CSS = """
.kept { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5; max-height: 62vh;
        overflow-y: auto; font-size: 0.9rem; }
.kept .sink, .legend .sink { background: rgba(245, 158, 11, 0.45); }
.kept .window, .legend .window { background: rgba(59, 130, 246, 0.28); }
.kept .slot, .legend .slot { background: rgba(16, 185, 129, var(--share)); }
.kept .left, .kept .omitted { opacity: 0.6; }
.kept .omitted { display: block; font-style: italic; }
.legend span { padding: 0 0.4em; margin-right: 0.8em; border-radius: 0.2em; }
.bytes { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.2em 0.8em; }
.bytes div { background: rgba(59, 130, 246, 0.6); height: 0.9em; align-self: center; }
#chat .icon-button-wrapper { display: none; }
"""
LEGEND = (
    '<p class="legend"><span class="sink">sinks</span><span class="window">window</span>'
    '<span class="slot" style="--share: 0.6">slots: the more heads, the stronger</span>'
    "plain: has left the window</p>"
)
FAINTEST = 0.15  # of a slot in one head


def text_html(session: Session) -> str:
    """The session's text, with what is kept of it marked."""
    if not session.state.tokens:
        return "<p>Nothing was read yet.</p>"
    return f'{LEGEND}<div class="kept">{"".join(map(_marked, kept_text(session)))}</div>'


def _marked(stretch: Stretch) -> str:
    words = f"{stretch.tokens:,} tokens"
    if stretch.kind == OMITTED:
        return f'<span class="omitted">{words} that have left the window</span>'
    text = escape(stretch.text) or f"[{words} read before]"
    if stretch.kind != SLOT:
        return f'<span class="{stretch.kind}">{text}</span>'
    share = f"{FAINTEST + (1 - FAINTEST) * stretch.share:.2f}"
    title = f"in {stretch.share:.0%} of the heads with slots"
    return f'<span class="slot" style="--share: {share}" title="{title}">{text}</span>'


def bytes_html(session: Session) -> str:
    """Tokens, what is held of them, and its bytes beside those of full attention."""
    exact, ours, full = held(session.state), session.nbytes, full_attention_nbytes(session.state)
    begin, end = exact.window
    parts = [f"{exact.sinks:,} sinks", f"{end - begin:,} in the window"]
    if exact.slots:
        parts.append(f"{len(exact.slots):,} in slots")
    bars = "".join(
        f"<span>{name}</span><div style='width: {100 * size / max(ours, full, 1):.1f}%'></div>"
        f"<span>{size / MIB:.1f} MiB</span>"
        for name, size in (("held", ours), ("full attention", full))
    )
    return (
        f"<p><b>{session.tokens:,} tokens</b> read and said: {', '.join(parts)}</p>"
        f'<div class="bytes">{bars}</div>'
    )
