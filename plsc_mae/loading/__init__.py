"""Opens checkpoints of plsc_mae and of other code bases: options, encoders, classifiers and whole networks."""
