"""What notebooks 07 and later need: models, their training, probes, and work at scale."""
