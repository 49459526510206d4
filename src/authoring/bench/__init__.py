"""The course's speed claims, measured side by side: ``python -m authoring bench``."""
