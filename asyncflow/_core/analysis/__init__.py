"""What can be said of runs that have been: figures, comparisons, pictures."""
