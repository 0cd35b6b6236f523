"""The control plane: decides where gangs run, remembers it, and can say why."""
