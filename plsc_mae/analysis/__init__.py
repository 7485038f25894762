"""Analysis of trained networks: attention maps, features, accuracies of frozen features, reconstructions."""
