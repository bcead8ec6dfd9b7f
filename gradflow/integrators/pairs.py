"""Embedded Runge–Kutta pairs: a step of one order, and the estimate of its error by another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradflow.integrators.runge_kutta import EmbeddedPair
from gradflow.integrators.tableau import Tableau


@dataclass(frozen=True)
class AdaptiveHeun(EmbeddedPair):
    """Heun's method of order 2, with the Euler step for comparison: two gradients a step.

    Hairer, Nørsett & Wanner (1993), II.1 and II.4. Options are those of :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "adaptive_heun"
    order: ClassVar[int] = 2
    error_order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(A=((), (1,)), b=(1 / 2, 1 / 2), error=(-1 / 2, 1 / 2))


@dataclass(frozen=True)
class Fehlberg2(EmbeddedPair):
    """Fehlberg's pair of orders 2 and 1: three gradients a step.

    Fehlberg, NASA TR R-315 (1969), RK1(2); it goes on from the result of order 2. The coefficient of its error estimate
    is 1/512, so that its steps are long for a given tolerance, and its errors large. Options are those of
    :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "fehlberg2"
    order: ClassVar[int] = 2
    error_order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(
        A=((), (1 / 2,), (1 / 256, 255 / 256)),
        b=(1 / 512, 255 / 256, 1 / 512),
        error=(-1 / 512, 0, 1 / 512),
    )


@dataclass(frozen=True)
class BogackiShampine(EmbeddedPair):
    """The pair of Bogacki and Shampine of orders 3 and 2: three gradients a step, and the cubic Hermite interpolant.

    Bogacki & Shampine, Appl. Math. Lett. 2 (1989) 321–325. Options are those of :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "bosh3"
    order: ClassVar[int] = 3
    error_order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau(
        A=((), (1 / 2,), (0, 3 / 4)),
        b=(2 / 9, 1 / 3, 4 / 9),
        error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    )


@dataclass(frozen=True)
class DormandPrince5(EmbeddedPair):
    """The pair of Dormand and Prince of orders 5 and 4: six gradients a step, and an interpolant of order 4.

    Dormand & Prince, J. Comput. Appl. Math. 6 (1980) 19–26, RK5(4)7M, with the interpolant of Shampine, Math. Comp. 46
    (1986) 135–150. Options are those of :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "dopri5"
    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        A=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        dense=(
            (1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0, 0, 0, 0),
            (0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
            (0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
            (0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    )


@dataclass(frozen=True)
class Tsitouras5(EmbeddedPair):
    """The pair of Tsitouras of orders 5 and 4: six gradients a step, and an interpolant of order 4.

    Tsitouras, Comput. Math. Appl. 62 (2011) 770–775; the interpolant's weights are expanded in powers here. Options are
    those of :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "tsit5"
    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5
    tableau: ClassVar[Tableau] = Tableau(
        A=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
                -0.028269050394068383,
            ),
        ),
        b=(
            0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
            2.324710524099774,
        ),
        error=(
            0.001780011052225777, 0.0008164344596567469, -0.007880878010261995, 0.1447110071732629,
            -0.5823571654525552, 0.45808210592918697, -1 / 66,
        ),
        dense=(
            (1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0, 0.1317, -0.2234, 0.1017),
            (0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0, 1.5, -4, 2.5),
        ),
    )  # fmt: skip
