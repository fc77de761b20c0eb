"""Evaluation: suites and their data, metrics, BM25, significance, and the report beside the published numbers."""
