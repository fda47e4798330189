"""Plumbing for the notebook series, and what an earlier notebook already taught."""
