"""What has happened in a run: results, the log, its fold, and the report."""
