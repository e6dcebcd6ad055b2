"""Getting an open model into memory."""
