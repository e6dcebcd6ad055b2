"""Where weights come from, and in what form."""
