"""The policies of runs: each has a module, which hooks into the kernel. `policies` lists them."""
