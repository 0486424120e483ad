"""A node of the text run. It has the model and no text: the coordinator sends the samples."""

import argparse

from text_model import TextModel

from manyhands import TrainingNode


def main() -> None:
    parser = argparse.ArgumentParser(description="Help to train the model of text_server.py.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the coordinator")
    given = parser.parse_args()

    TrainingNode(TextModel(), (given.host, given.port), invite=given.invite).train()
    print("the run is over")


if __name__ == "__main__":
    main()
