"""Lesson 04: DeepSpeed's configurations, where the bytes lie, trainings of several processes, and a planner."""
