"""Death at a chosen moment of a training.

By SIGKILL at the n-th function call of a step, of a mask update, of the writing of a checkpoint (older ones are deleted
there, too) or of packing and saving at the end; or by the kernel in the middle of a file, past a limit on its size
(SIGXFSZ).
"""

import os
import resource
import signal
import sys

from optimum.dendritic import DendriticCallback

WINDOWS = ("step", "update", "file", "save", "end")  # where a process may die


class Death:
    """Counts function calls in a window of one step; at call number `at` the process kills itself."""

    def __init__(self, window: str = "", step: int = 0, at: int | None = 0):
        self.window, self.step, self.at = window, step, at  # at None: only count, in every window
        self.calls: dict[str, int] = dict.fromkeys(WINDOWS, 0)  # the most that a window had
        self.seen, self.now = 0, "step"

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.seen += event in ("call", "c_call")
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def enter(self, window: str, step: int) -> None:
        if self.at is None:
            self.leave()
        if self.at is None or (window, step) == (self.window, self.step):
            self.seen, self.now = 0, window
            sys.setprofile(self._count)

    def leave(self) -> None:
        """No more deaths after this."""
        sys.setprofile(None)
        self.calls[self.now] = max(self.calls[self.now], self.seen)


class Mortal(DendriticCallback):
    """The callback, whose hooks begin a window each. (It stands first, so that its own work is inside.)"""

    death: Death

    def on_step_begin(self, args, state, control, **kwargs):
        self.death.enter("step", state.global_step + 1)
        super().on_step_begin(args, state, control, **kwargs)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.death.enter("update", state.global_step + 1)
        super().on_pre_optimizer_step(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.death.at and (self.death.window, self.death.step) == ("file", state.global_step):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.death.at, self.death.at))
        self.death.enter("save", state.global_step)
        super().on_step_end(args, state, control, **kwargs)

    def on_save(self, args, state, control, **kwargs):
        if self.death.at is None:
            self.death.leave()

    def on_train_end(self, args, state, control, **kwargs):
        self.death.enter("end", state.global_step)
        super().on_train_end(args, state, control, **kwargs)
