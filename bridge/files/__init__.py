"""Files: which reader takes one, how one is written."""
