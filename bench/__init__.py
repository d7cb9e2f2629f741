"""Benchmarks of zloop and its peers; see README.md in this folder. Run from the repository's root."""
