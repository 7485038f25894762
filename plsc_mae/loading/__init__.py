"""Opening checkpoints: options, encoders, classifiers and whole networks, of this suite and of others."""
