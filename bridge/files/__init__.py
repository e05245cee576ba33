"""Files: how they are recognized, read and written."""
