"""What can be said of runs that have been: figures, comparisons, remarks, pictures.

It may import all of the core. Views, journals and the command line call it, and a `RunReport` when
it is asked for one of these.
"""
