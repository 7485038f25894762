"""Looking at what a network has learned."""
