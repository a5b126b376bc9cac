"""What happens next in a run: its state, who may start, until when, and what an attempt may ask.

It may import all of the core but `analysis`. The kernel and the policies call it: they apply events
to its `RunState`, and ask what follows.
"""
