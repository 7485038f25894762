"""Training engine: loop, step, checkpoints, logs. It depends on the Task contract and on no particular method."""
