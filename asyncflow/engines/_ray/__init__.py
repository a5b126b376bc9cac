"""The engine for Ray: its hosts, and the actor in which bodies run."""
