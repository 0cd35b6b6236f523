"""Run inside the peers: by their interpreters, in their namespaces."""
