"""Training of the bundled model; development only."""
