"""Report of a training run as one HTML file, and the comparison of several runs."""
