"""What commands show: tables, the summary of a run, verdicts, progress."""
