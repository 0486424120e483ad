"""A coordinator: it holds the data and the optimizer, and leases the work to whoever joins.

    python examples/pool_server.py          in one terminal
    python examples/pool_node.py            in a second one, and a third: on this machine they find it

On another machine give the node the mh:// part of the line that this prints (and use ip=None here).
"""

import argparse

from digits import digits, network

from manyhands import CentralServer


def make_server(port: int = 5555, epochs: int = 10, folder: str = "checkpoints") -> CentralServer:
    """The run; `manyhands verify examples/pool_server.py:make_server` takes it from here too."""
    train, test = digits()
    return CentralServer(
        network(),
        train,
        batch_size=64,
        port=port,
        epochs=epochs,
        checkpoint_dir=folder,
        val_dataset=test,
        on_epoch=print_epoch,
    )


def print_epoch(epoch: int, val_loss: float, val_accuracy: float, **figures: object) -> None:
    """Called by the server after each epoch; figures holds train_loss."""
    print(f"epoch {epoch}: test loss {val_loss:.4f}, accuracy {val_accuracy:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a network on handwritten digits, with a pool.")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", default="checkpoints", help="where checkpoints go")
    given = parser.parse_args()

    report = make_server(given.port, given.epochs, given.folder).start()

    print(f"{report.steps} steps with {report.nodes_seen} nodes in {report.seconds:.1f} s")
    print(f"{report.samples_applied} of {report.samples_expected} samples applied")
    print(f"weights {report.weights_sha256}")


if __name__ == "__main__":
    main()
