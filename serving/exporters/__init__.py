"""What other platforms take: files made from a model folder and its signature."""
