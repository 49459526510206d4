"""The lessons' exercises, guesses and quizzes.

``check.leaks(answer)``, ``check.compare(guess, outcome)``, ``check.quiz("01", "a b c")``, ``check.progress()``.

Each exercise tries your answer on many inputs and shows one for which it goes wrong; a module per lesson holds them.
"""

from finetuning.check.guess import compare
from finetuning.check.lesson01 import leaks, length_limit, padding_waste, star_words
from finetuning.check.lesson02 import choose_prompt, decisive_word, interval, majority
from finetuning.check.lesson03 import gains, mask_padding, pick_training, positive_probability
from finetuning.check.lesson04 import accumulated_loss, lowest_stage, zero_bytes
from finetuning.check.lesson05 import bf16_copies, place, reshard, split_batch
from finetuning.check.lesson06 import adapter_parameters, merge, parts_to_train
from finetuning.check.lesson07 import calibration_error, mcnemar, negation_slice, stream_answers
from finetuning.check.progress import progress
from finetuning.check.quiz import quiz

EXERCISES = {
    "01": (leaks, star_words, length_limit, padding_waste),
    "02": (majority, interval, decisive_word, choose_prompt),
    "03": (mask_padding, positive_probability, pick_training, gains),
    "04": (accumulated_loss, zero_bytes, lowest_stage),
    "05": (place, reshard, bf16_copies, split_batch),
    "06": (adapter_parameters, merge, parts_to_train),
    "07": (mcnemar, calibration_error, negation_slice, stream_answers),
}

__all__ = ["EXERCISES", "compare", "progress", "quiz", *(one.__name__ for found in EXERCISES.values() for one in found)]
