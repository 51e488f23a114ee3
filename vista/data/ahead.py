"""Work ahead: a thread makes what a consumer asks for next."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], number: int) -> Generator[Item, None, None]:
    """`items`, of which a thread makes up to `number` ahead of the consumer. What it raises, the consumer
    raises; closing the iterator ends the thread."""
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(number)
    closed = threading.Event()

    def offer(made: tuple[Item] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put(made, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                offer((item,))
                if closed.is_set():
                    return
            offer(None)
        except BaseException as error:  # handed to the consumer, who raises it
            offer(error)

    worker = threading.Thread(target=work, name="vista-ahead", daemon=True)
    worker.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made[0]
    finally:
        closed.set()
        worker.join()
