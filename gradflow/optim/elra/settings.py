"""What the user of ELRA chose, checked."""

from __future__ import annotations

from dataclasses import dataclass

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError


def reading_of_decay(value: object) -> float:
    """Return the strength that a ``weight_decay`` stands for: 1 − value above 1/2.

    Parameters
    ----------
    value : float
        Strength in [0, 0.1), or the factor that a weight keeps, in (0.9, 1].
    """
    check_number("weight_decay", value, least=0)
    number = float(value)  # type: ignore[arg-type]
    strength = 1 - number if 0.5 < number <= 1 else number
    if not strength < 0.1:
        raise InvalidInputError(
            f"Expected weight_decay in [0, 0.1), or in (0.9, 1] to be read as 1 − weight_decay, got {value}."
        )
    return strength


@dataclass
class Settings:
    """What the user chose; see :class:`gradflow.optim.ElraOptimizer`.

    Attributes
    ----------
    lr : float
        α₀.
    batch_size, classes : int
    momentum : float
        β; 0: none.
    weight_decay : float
        w₀, as read by :func:`reading_of_decay`.
    warmup : float
        W, in real calls.
    noise_free : bool or None
        None: by `classes`.
    compat : bool
    """

    lr: float
    batch_size: int
    classes: int
    momentum: float
    weight_decay: float
    warmup: float
    noise_free: bool | None
    compat: bool

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_count("batch_size", self.batch_size, least=1)
        check_count("classes", self.classes)
        check_number("momentum", self.momentum, least=0, below=1)
        self.weight_decay = reading_of_decay(self.weight_decay)
        check_number("warmup", self.warmup, least=0)
        if self.noise_free is not None and not isinstance(self.noise_free, bool):
            raise InvalidTypeError(
                f"Expected noise_free to be a bool or None, got {type(self.noise_free).__name__} {self.noise_free!r}."
            )

    @property
    def is_noise_free(self) -> bool:
        """Whether the loss is taken for a function of the parameters alone."""
        return self.classes <= 1 if self.noise_free is None else self.noise_free
