"""The plots, a file for each group of them: tables in, a Matplotlib Figure out."""
