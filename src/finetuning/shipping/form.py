"""Lesson 07: a form to try a model in."""

import os

from finetuning.shipping.pipeline import ReviewPipeline


def answer(pipe: ReviewPipeline, text: str) -> str:
    """A review's label and its probability in words; ``pipe`` is a ``ReviewPipeline``."""
    if not text.strip():
        return "Write a review first."
    best = pipe(text)[0]
    return f"{best['label']}, with probability {best['score']:.3f}"


def review_form(pipe: ReviewPipeline) -> None:
    """Show a box to type a review in and a button that answers it; a line of text where nobody could press it.

    A form needs a notebook server behind the page, which tells its kernels by JPY_SESSION_NAME. A lesson that is
    executed headless has none, and a widget saved in it would show as an error wherever it is read.
    """
    if "JPY_SESSION_NAME" not in os.environ:
        print('Opened in JupyterLab, this cell shows a form; here, ask by answer(ask, "...").')
        return
    from IPython.display import display
    from ipywidgets import HTML, Button, Textarea, VBox

    box = Textarea(placeholder="Type or paste a review", layout={"width": "100%", "height": "8em"})
    button, shown = Button(description="Ask the model", button_style="primary"), HTML()
    button.on_click(lambda _: setattr(shown, "value", f"<b>{answer(pipe, box.value)}</b>"))
    display(VBox([box, button, shown]))
