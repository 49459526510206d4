"""Lesson 05: a trained model made ready for others."""
