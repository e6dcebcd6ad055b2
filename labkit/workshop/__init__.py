"""A folder from which a class installs and runs labkit without a network: `labkit workshop prepare | check`."""
