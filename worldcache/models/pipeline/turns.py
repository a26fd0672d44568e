"""A function that stands still in a thread of its own whenever it waits for an answer.

Knows nothing of pipelines or models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")
ResultT = TypeVar("ResultT")


class Abandoned(BaseException):
    """Unwinds a function whose result nobody waits for; no ``except Exception`` on its way stops it."""


class TurnThread(Generic[QuestionT, AnswerT, ResultT]):
    """Runs a function in a thread that takes turns with its owner's: one of the two always waits.

    So the function may touch whatever the owner may, without locks, and owners of several such threads
    let them run one after the other.

    Args:
        function: given ``ask``, which hands a question to the owner and returns the answer.
        name: of the thread. It computes with as many threads of the host as the one that makes it.
    """

    def __init__(self, function: Callable[[Callable[[QuestionT], AnswerT]], ResultT], name: str) -> None:
        self._function = function
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._own_turn, self._owners_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._question: QuestionT | None = None
        self._answers: list[AnswerT] = []
        self._results: list[ResultT] = []
        self._error: BaseException | None = None
        self._closing = False

    def start(self) -> QuestionT | None:
        """Let the function run; as :meth:`answer`."""
        self._thread.start()
        return self._wait()

    def answer(self, answer: AnswerT) -> QuestionT | None:
        """Let the function go on with the answer to its question.

        Returns:
            Its next question, or ``None`` once it has returned and its thread has ended.

        Raises:
            BaseException: whatever the function raised; its thread has ended.
        """
        self._answers.append(answer)
        self._own_turn.release()
        return self._wait()

    @property
    def result(self) -> ResultT:
        """What the function returned."""
        return self._results[0]

    def close(self) -> None:
        """End the thread; a function that waits for an answer is unwound."""
        self._closing = True
        if self._thread.is_alive():
            self._own_turn.release()
            self._thread.join()

    def _wait(self) -> QuestionT | None:
        self._owners_turn.acquire()
        question, self._question = self._question, None
        if question is None:
            self._thread.join()
            error, self._error = self._error, None
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback ends here, and would keep itself and the function's values
        return question

    def _ask(self, question: QuestionT) -> AnswerT:
        if not self._closing:
            self._question = question
            self._owners_turn.release()
            self._own_turn.acquire()
        if self._closing:
            raise Abandoned
        return self._answers.pop()

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)
        try:
            self._results.append(self._function(self._ask))
        except Abandoned:
            pass  # its owner knows
        except BaseException as error:
            self._error = error
        finally:
            self._owners_turn.release()
