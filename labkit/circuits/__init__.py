"""Every edge scored, and circuits of them put to the test."""
