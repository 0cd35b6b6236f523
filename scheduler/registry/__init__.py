"""What is registered: data and models with their versions and aliases, endpoints, and where all came from."""
