"""What keeps the course: its README, figures, slides, classroom copies, pocket T5 and the bench.

No lesson imports it.
"""
