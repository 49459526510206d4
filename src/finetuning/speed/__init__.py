"""Lesson 03: recipes for training and prediction, one change at a time, and their speed measured in turn."""
