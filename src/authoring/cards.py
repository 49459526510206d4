"""Write the measured figures into the cards of pocket T5 and Pocket Reviews.

``python -m authoring cards [--source IMDB]``.
"""

import argparse

from authoring.pocket import corpus, pocket_card


def main(arguments: list[str]) -> None:
    """The card of Pocket Reviews; with ``--source``, which takes half an hour, that of pocket T5 too."""
    parser = argparse.ArgumentParser(prog="python -m authoring cards", description="Fill the cards of what is shipped.")
    parser.add_argument("--source", help="folder with IMDb's train.parquet and test.parquet, or the Hub id")
    source = parser.parse_args(arguments).source
    corpus.fill_card()
    if source:
        pocket_card.fill_card(source)
