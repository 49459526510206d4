"""Write the measured figures into the cards of pocket T5 and Pocket Reviews.

``python -m authoring cards [--source IMDB]``.
"""

import argparse
import runpy


def main(arguments: list[str]) -> None:
    """The card of Pocket Reviews; with ``--source``, which takes an hour, that of pocket T5 too."""
    parser = argparse.ArgumentParser(prog="python -m authoring cards", description="Fill the cards of what is shipped.")
    parser.add_argument("--source", help="folder with IMDb's train.parquet and test.parquet, or the Hub id")
    source = parser.parse_args(arguments).source
    runpy.run_module("authoring.pocket.corpus", run_name="__main__")
    if source:
        from authoring.pocket import pocket_card

        pocket_card.main(["--source", source])
