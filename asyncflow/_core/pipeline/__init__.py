"""What was asked for: steps, and the graph that they make."""
