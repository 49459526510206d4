"""Pocket T5 and Pocket Reviews: how they were made, and what their cards say."""
