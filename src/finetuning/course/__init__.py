"""The lessons run headless, one after the other, and the report of such a run."""
