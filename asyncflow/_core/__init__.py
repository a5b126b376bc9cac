"""The pure core: what happens in a run and what follows from it, without a clock or a loop."""
