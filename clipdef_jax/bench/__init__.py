"""Benchmarks: `python -m clipdef_jax.bench NAME`, rivals timed in the same run where installed."""
