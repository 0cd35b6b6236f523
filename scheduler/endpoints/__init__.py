"""Endpoints: what is to run under each name, what does, and what is to be done next. Pure."""
