"""The engine for Dask: the fence, the bodies, and the tasks that ask for them.

It may import `_remote`, the driver and the core, and runs on clients, on the scheduler and on
workers. `DaskEngine` calls it, and Dask does on the other side.
"""
