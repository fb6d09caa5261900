"""The whole study as one file, figures/index.html: made from result files alone, nothing is computed again."""
