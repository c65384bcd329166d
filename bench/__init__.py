"""Benchmarks: they print what is, and never assert."""
