"""Facts in a long text, asked for in forms that no memory was trained on."""
