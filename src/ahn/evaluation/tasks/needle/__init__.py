"""Needles: facts in common words, hidden at known places of a long text, asked for at its end."""
