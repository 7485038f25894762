"""Training on several processes: process groups, tensor parallelism and failure detection."""
