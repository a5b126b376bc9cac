"""What every display of a run shows, without any of their extras.

It may import the core. The terminal, pages, notebooks, log records, spans and the command line call
it, and decide nothing of that by themselves.
"""
