"""The engine for Dask: the fence, the bodies, and the tasks that ask for them."""
