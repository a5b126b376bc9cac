"""How a run is asked for, opened, watched and continued: what users of the driver hold.

It may import the policies, the kernel and the core. Programs call it, and so do the command line,
services and the testing kit.
"""
