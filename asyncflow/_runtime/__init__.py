"""How a run is asked for, opened, watched and continued: what users of the driver hold."""
