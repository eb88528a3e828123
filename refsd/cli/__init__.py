"""The command line: one file a sub-command, and what they share. Nothing heavy at import."""
