"""Pipeline parallelism of classifiers: division into stages, their schedule, and the task of one stage."""
