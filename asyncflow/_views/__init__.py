"""What every display of a run shows, without any of their extras."""
