"""The wire: messages and services (v1, generated), and what both of its ends agree on."""
