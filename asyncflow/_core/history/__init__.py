"""What has happened in a run: the log, its fold, results, what a resumption keeps, the report.

It may import `pipeline`, `pools` and the ground floor. The running state appends to its log;
whatever resumes, shows or stores a run reads it.
"""
