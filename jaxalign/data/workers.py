"""Tokenizing processes: they take chunks and return blocks in the same order.

They are started as programs of their own and not by `multiprocessing`: a fork is not safe beside JAX's threads, and a
spawned process would run the user's script again. A thread for each sends it work and waits for what it gives. They
end where their input does, so they never outlive this process.
"""

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxalign.data.blocks import Block, Recipe
from jaxalign.data.chunks import Chunk
from jaxalign.errors import ConfigError, DataError, UserError

# A file of no more chunks is tokenized in less time than workers need to start.
FEW_CHUNKS = 4
# More of them only wait for the file.
MOST_WORKERS = 32


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class WorkerError(RuntimeError):
    """A worker failed in a way that is a bug; the message has its traceback."""


class Workers:
    """Up to `count` worker processes, started when there is work for them; a context manager.

    Args:
      count: how many; 0 for one per core that this process may use, `MOST_WORKERS` at most; 1 to do the work in this
        process.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count or min(cores(), MOST_WORKERS)
        self._running: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._recipes: dict[int, tuple[int, bytes, Recipe]] = {}
        # Where nobody closes them they end with this object.
        self._end = weakref.finalize(self, _end_all, self._running)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, jobs: Iterable[tuple[Recipe, Chunk]]) -> Iterator[Block]:
        """The blocks of chunks by their recipes, in order.

        Raises:
          UserError: what `Recipe.block` raises, of the first chunk for which it does.
          WorkerError: a bug in a worker.
        """
        jobs = iter(jobs)
        first = list(itertools.islice(jobs, FEW_CHUNKS + 1))
        whole = itertools.chain(first, jobs)
        if self.count > 1 and len(first) > FEW_CHUNKS and self._can_be_sent(first[0][0]):
            yield from self._sent(whole)
        else:
            yield from (recipe.block(chunk) for recipe, chunk in whole)

    def _sent(self, jobs: Iterator[tuple[Recipe, Chunk]]) -> Iterator[Block]:
        self._threads = threads = self._threads or ThreadPoolExecutor(self.count, "tokenizing")
        waiting: deque[Future[Block]] = deque()
        try:
            while True:
                for recipe, chunk in itertools.islice(jobs, 2 * self.count - len(waiting)):
                    self._start(len(waiting) + 1)
                    waiting.append(threads.submit(self._made, self._numbered(recipe), chunk))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _can_be_sent(self, recipe: Recipe) -> bool:
        """Whether a recipe can be pickled; one with a tokenizer of the user's own class may not.

        What the user's script defines is not to be had in another process either.
        """
        try:
            _, body = self._numbered(recipe)
        except Exception:
            return False
        return b"__main__" not in body

    def _numbered(self, recipe: Recipe) -> tuple[int, bytes]:
        """A number for a recipe, and its bytes."""
        if id(recipe) not in self._recipes:
            # With the recipe itself, so that no other one gets its id.
            self._recipes[id(recipe)] = (len(self._recipes), pickle.dumps(recipe, protocol=5), recipe)
        return self._recipes[id(recipe)][:2]

    def _start(self, jobs: int) -> None:
        """As many processes as there are jobs, and no more than are allowed."""
        while len(self._running) < min(self.count, jobs):
            worker = _Worker()
            self._running.append(worker)
            self._idle.put(worker)

    def _made(self, recipe: tuple[int, bytes], chunk: Chunk) -> Block:
        worker = self._idle.get()
        try:
            return worker.block(recipe, chunk)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes and discards their current work. More work starts new ones."""
        _end_all(self._running)
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._threads, self._idle = None, queue.SimpleQueue()


def _end_all(running: "list[_Worker]") -> None:
    while running:
        running.pop().end()


class _Worker:
    """A process that makes blocks."""

    def __init__(self) -> None:
        environment = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
        # Found where it is found here, whatever the script has done to the path.
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            self._process = subprocess.Popen(
                # -P: without the current folder, which may hold another version, unless it is on the path here.
                [sys.executable, "-P", "-m", "jaxalign.data.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,  # Ctrl-C is for the process that was started by hand
            )
        except OSError as error:
            raise ConfigError(
                f"data.workers: cannot start a process ({error.strerror}); set a lower number, or 1 for none"
            ) from None
        self._known: set[int] = set()

    def block(self, recipe: tuple[int, bytes], chunk: Chunk) -> Block:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            number, body = recipe
            pickle.dump((number, None if number in self._known else body, chunk), process.stdin, protocol=5)
            process.stdin.flush()
            self._known.add(number)
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            code = process.wait()
            raise DataError(
                f"{chunk.path}: a tokenizing process died ({_ending(code)}) near row {chunk.start + 1:,}; set "
                "data.workers to a lower number, or to 1 for none"
            ) from None
        if isinstance(answer, Block):
            return answer
        error, trace = answer
        if isinstance(error, UserError):
            raise error
        raise WorkerError(f"{chunk.path}: near row {chunk.start + 1:,}:\n{trace}") from error

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # of what was not sent any more
                    stream.close()


def _ending(code: int) -> str:
    return f"killed by signal {-code}; is there enough memory?" if code < 0 else f"exit status {code}"


def answer(recipe: Recipe, chunk: Chunk) -> Any:
    """A block, or the error and its traceback; for the worker's side."""
    import traceback

    try:
        return recipe.block(chunk)
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(str(error))
        return error, trace
