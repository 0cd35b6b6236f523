"""The node: what it has, what runs on it, and what became of that."""
