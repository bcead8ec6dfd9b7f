"""How a run can end."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """The end of a run: a value for programs, and a text that says what to do.

    Attributes
    ----------
    success : bool
        The end is one that the user asked for.
    advice : str
    """

    REACHED_T_MAX = "t_max", True, "The run reached t_max."
    REACHED_MAX_STEPS = "max_steps", True, "The run took max_steps steps."
    REACHED_WALL_TIME = "max_wall_time", True, "The run used up max_wall_time."
    REACHED_LOSS_GOAL = "loss_goal", True, "The training loss reached loss_goal."
    REACHED_ACCURACY_GOAL = "acc_goal", True, "The training accuracy reached acc_goal."
    EVENT = "event", True, "An event occurred that ends the run."
    STOPPED_BY_CALLBACK = "callback", True, "The callback asked to stop."
    INTERRUPTED = (
        "interrupted",
        False,
        "The run was interrupted by a signal. What it recorded is kept; resume=… goes on from its last checkpoint.",
    )
    NOT_FINITE = (
        "not_finite",
        False,
        "The loss or its gradient stopped being finite. Take smaller steps (lr, alpha or max_step), or start "
        "from smaller weights.",
    )
    UNSTABLE = (
        "unstable",
        False,
        "The loss rose, which the gradient flow can't do. Take smaller steps, or a method that is stable at this "
        "sharpness.",
    )
    STEP_UNDERFLOW = (
        "step_underflow",
        False,
        "The step became too small to advance t. The sharpness has grown beyond what this method can follow: use "
        "expeuler, or look at the loss for a kink or a pole.",
    )
    NO_SHARPNESS = (
        "no_sharpness",
        False,
        "No step could be sized: λ₁ is not a number, or nothing limits the step. Give max_step, and check that "
        "the loss is twice differentiable here.",
    )
    NO_MULTIPLIER = (
        "no_multiplier",
        False,
        "The central flow has no solution here: an eigenvalue at the edge would go on rising whatever the oscillation "
        "(its gradient vanishes, or nearly so, or the learning rate rises). Take flow='rod' or 'edge', or a smaller "
        "learning rate.",
    )
    TOO_MANY_ACTIVE = (
        "too_many_active",
        False,
        "More directions are at the edge of stability than max_active allows. Give a larger max_active.",
    )
    LEFT_MODEL = (
        "left_model",
        False,
        "The run came to where its flow is no model of the optimiser, and stopped before. Use another flow there.",
    )
    STEP_CAP = (
        "step_cap",
        False,
        "The run hit the built-in cap on the number of steps. Give max_steps to choose your own, or use a method "
        "with longer steps.",
    )

    def __init__(self, code: str, success: bool, advice: str) -> None:
        self.code = code
        self.success = success
        self.advice = advice


class NumericalFailure(Exception):
    """A run can't go on from its last good state; the driver turns it into the run's status."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status

    @property
    def message(self) -> str:
        """The status's advice, with what happened."""
        return f"{self.status.advice} What happened: {self}."
