"""The time left, from the units of work in each job and the seconds that such units have taken so far."""

import time
from collections.abc import Callable, Hashable, Sequence

from rmsnorm_lab.experiments.jobs import Job, TrainingJob


class Pace:
    """Of the jobs in ``planned``, in their order.

    A unit is a step of one normaliser. Each kind of unit (a normaliser, or a setting of a timing) is expected at its
    own speed so far; a kind that has not run yet, at the average speed.
    """

    def __init__(self, planned: Sequence[Job] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._waiting, self._clock = list(planned), clock
        self._spent: dict[Hashable, tuple[int, float]] = {}
        self._job: Job | None = None
        self._at_start: int | None = None
        self._since, self.done = 0.0, 0

    def begin(self, job: Job) -> None:
        self._job, self._since, self._at_start, self.done = job, self._clock(), None, 0
        if job in self._waiting:
            self._waiting.remove(job)

    def advance(self, done: int, taken: int = 1) -> None:
        """Of the job ``done`` units are done, the last ``taken`` of them just now: before the first of these lay what
        a checkpoint holds."""
        if self._at_start is None:
            self._at_start = done - taken
        self.done = done

    def end(self) -> None:
        if self._job is not None and self._at_start is not None:
            units, seconds = self._spent.get(_sort(self._job), (0, 0.0))
            self._spent[_sort(self._job)] = (units + self.done - self._at_start, seconds + self._clock() - self._since)
        self._job = None

    def elapsed(self) -> float:
        return self._clock() - self._since

    def left(self) -> float | None:
        """Seconds; None until something has been measured."""
        spent = dict(self._spent)
        remaining = [(_sort(job), job.units) for job in self._waiting]
        if (job := self._job) is not None:
            sort = _sort(job)
            remaining.append((sort, job.units - self.done))
            if self._at_start is not None:
                units, seconds = spent.get(sort, (0, 0.0))
                spent[sort] = (units + self.done - self._at_start, seconds + self.elapsed())
        all_units, all_seconds = (sum(column) for column in zip(*spent.values(), strict=True)) if spent else (0, 0.0)
        if not all_units:
            return None
        total = 0.0
        for sort, count in remaining:
            units, seconds = spent.get(sort, (all_units, all_seconds))
            total += count * seconds / units
        return total


def _sort(job: Job) -> Hashable:
    norm = job.identity.norm if isinstance(job, TrainingJob) else None
    return (job.task.name, job.identity.kind, job.setup.kernels, norm)
