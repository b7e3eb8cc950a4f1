"""Files in and out. Nothing is imported here: reading a table needs no MONAI."""
