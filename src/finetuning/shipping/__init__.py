"""Lesson 07: a trained model made ready for others."""
