"""What happens next in a run: its state, and what an attempt may ask."""
