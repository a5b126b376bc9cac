"""The engine for Ray: its hosts, and the actor in which bodies run.

It may import `_remote`, the driver and the core, and runs on both sides of the cluster. `RayEngine`
calls it, and Ray does on the other side.
"""
