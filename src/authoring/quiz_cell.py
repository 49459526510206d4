"""The cell of a lesson that shows its quiz: ``quiz_markdown("01")`` is what stands in it."""

from finetuning.check.quiz import letters, questions


def quiz_markdown(lesson: str) -> str:
    """A quiz as the lesson shows it.

    The questions with their choices, and below them, folded, a word on every choice.
    """
    asked, explained = [], []
    for i, question in enumerate(questions(lesson), 1):
        choices = [f"   - **{letter}** {question[letter][0]}" for letter in letters(question)]
        asked.append("\n".join([f"{i}. {question['ask']}", *choices]))
        words = [f"{letter}: {question[letter][1]}" for letter in letters(question)]
        explained.append(f"{i}. **{question['right']}.** " + " ".join(words))
    head = "<details><summary>The answers, each choice explained</summary>"
    return "\n".join([*asked, "", head, "", *explained, "", "</details>"])
