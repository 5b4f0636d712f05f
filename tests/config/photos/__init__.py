"""Stands for worker code."""
