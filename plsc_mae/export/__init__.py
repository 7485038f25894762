"""Export: networks of weight files for other programs, with files that show their use and a check of the outputs."""
