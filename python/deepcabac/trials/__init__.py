"""The search for the smallest file that keeps a metric."""
