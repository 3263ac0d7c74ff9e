"""Sources: one module per format, and the listing that they share."""
