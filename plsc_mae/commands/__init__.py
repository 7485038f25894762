"""The commands of `plsc-mae`. A module is imported when its command runs; the functions `run*` receive the config."""
