"""The policies of runs: each has a module, which hooks into the kernel. `policies` lists them.

They may import the kernel and the core, and one another as `tests/test_architecture.py` lists it.
The kernel calls their hooks; `_runtime` asks for the list.
"""
