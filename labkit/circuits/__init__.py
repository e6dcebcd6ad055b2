"""Every edge scored, and circuits tested."""
