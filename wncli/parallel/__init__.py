"""Runs tasks in parallel."""
