"""A node: it lends this process to the coordinator of pool_server.py until the run ends.

Start as many as you like, whenever you like, and stop any of them: the run goes on with the rest.
"""

import argparse

from digits import network

from manyhands import TrainingNode


def print_loss(loss: float, batch_id: int) -> None:
    """Called after each micro-batch that this node computed."""
    print(f"micro-batch {batch_id}: loss {loss:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Help to train the network of pool_server.py.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the coordinator")
    given = parser.parse_args()

    node = TrainingNode(network(), (given.host, given.port), invite=given.invite)
    node.train(loss_callback=print_loss)
    print("the run is over")


if __name__ == "__main__":
    main()
