"""A node with a training loop of its own, for work that TrainingNode.train() does not foresee.

The coordinator is pool_server.py; it does not care which kind of node computes a micro-batch. This loop
does what train() does, so it gives the same bits; put your own loss or your own accelerator in its place.
Only the loss stays here: send_gradients does not report it, so the coordinator's train_loss is None.
"""

import argparse

from digits import network
from torch.nn.functional import cross_entropy

from manyhands import TrainingNode


def main() -> None:
    parser = argparse.ArgumentParser(description="Help to train the network of pool_server.py, by hand.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the coordinator")
    given = parser.parse_args()

    node = TrainingNode(network(), (given.host, given.port), invite=given.invite).connect()
    batches = 0
    try:
        # get_batch has put the weights of the step into node.model, and the dropout seed of the batch in place.
        while (batch := node.get_batch()) is not None:
            node.model.zero_grad()
            loss = cross_entropy(node.model(batch["inputs"]), batch["targets"])
            loss.backward()
            gradients = [parameter.grad for parameter in node.model.parameters()]
            node.send_gradients(gradients, batch["batch_id"])
            batches += 1
            if batches % 20 == 1:
                print(f"batch {batch['batch_id']}: loss {loss.item():.4f}", flush=True)
    finally:
        node.close()
    print(f"the run is over; this node computed {batches} micro-batches")


if __name__ == "__main__":
    main()
