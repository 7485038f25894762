"""The engine: loop, step, checkpoints, logs. It knows the Task contract and no method."""
