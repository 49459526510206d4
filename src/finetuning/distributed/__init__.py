"""Lessons 04 and 05: DeepSpeed's configurations, where the bytes lie, trainings of several processes, and a planner."""
