"""The kernel of a run: starts nodes, makes their attempts, stops them. It knows no policy."""
