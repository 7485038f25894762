"""The commands, one module each with `run(config)`: they join methods, data and engine. Loaded when asked for."""
