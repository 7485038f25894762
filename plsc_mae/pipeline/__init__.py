"""Pipeline parallelism of classifiers: stages of blocks, their schedule, and the task of one stage."""
