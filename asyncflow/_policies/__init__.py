"""The policies of runs: each has a room, which hooks into the kernel. `policies` lists them."""
