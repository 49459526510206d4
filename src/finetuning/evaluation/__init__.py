"""Lesson 07: which of two models is better, how sure one may be, where and why it fails."""
