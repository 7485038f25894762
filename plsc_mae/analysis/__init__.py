"""Analysis of networks, features and images: metrics, probes, attention maps and pictures."""
