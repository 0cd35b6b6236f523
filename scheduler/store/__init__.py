"""What survives a crash: one transaction per batch, on SQLite or PostgreSQL."""
