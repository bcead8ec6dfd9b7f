"""Observers of a user's own: recorded beside ours, resumed, refused with a reason; and never changing the run."""

import gc
import json
import math
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import zoo

import gradflow
from gradflow import Observer, Variable, problems, steps
from gradflow.errors import ResumeError

double = torch.float64
ONES = torch.ones(3, dtype=double)
SCALE = torch.tensor([1.0, 2.0, 4.0], dtype=double)


def bowl(x):
    return 0.5 * (SCALE * x**2).sum()


@pytest.fixture(scope="module")
def chebyshev():
    return problems.load("chebyshev-4-20", "regression", "mse", dtype=double)


def descend(loss=bowl, theta=ONES, **kwargs):
    return gradflow.integrate(loss, theta, **({"method": "gd", "lr": 0.1, "max_steps": 4} | kwargs))


@dataclass
class Alignment(Observer):
    """|cos| of the angles between gradient and top eigenvectors, and those eigenvalues."""

    k: int = 2
    tol: float = 1e-6
    variables = {
        "alignment": Variable(("mode",), "cosine of gradient and eigenvector"),
        "curvature": Variable(("mode",), "eigenvalue of the mode", units="1/time"),
    }

    def measure(self, point):
        pairs, g = point.top(self.k, tol=self.tol), point.gradient
        return {"alignment": (pairs.vectors.T @ g).abs() / g.norm(), "curvature": pairs.values}


@dataclass
class Path(Observer):
    """Length of the way through the records, which depends on all of them."""

    scale: float = 1.0
    variables = {"path": Variable(long_name="length of the way so far")}
    _last = None
    _length = 0.0

    def measure(self, point):
        if self._last is not None:
            self._length += float((point.theta - self._last).norm())
        self._last = point.theta
        return {"path": self.scale * self._length}

    def state_dict(self):
        return {"last": self._last, "length": self._length}

    def load_state_dict(self, state):
        self._last, self._length = state["last"], state["length"]


class Vandal(Observer):
    """Writes into all that it gets."""

    variables = {"nothing": Variable()}

    def measure(self, point):
        products = point.hvp(point.gradient)
        pairs = point.top(1)
        for tensor in (
            point.theta,
            point.z,
            point.gradient,
            pairs.vectors,
            pairs.values,
            point.velocity,
            products,
        ):
            tensor.mul_(1e6)
        return {"nothing": 0.0}


def assert_same(one, other, but=frozenset()):
    for name in one.variables:
        if name != "wall_time" and name not in but:
            assert np.array_equal(one[name], other[name], equal_nan=True), name


# ---------------------------------------------------------------------- what is recorded


def test_instances_and_functions_are_recorded_beside_ours(chebyshev):
    train, _, theta = chebyshev
    functions = {"weight_norm": lambda point: point.theta.norm(), "first": lambda point: point.theta[:2]}
    run = descend(
        train, theta, lr=0.05, max_steps=6, n_eigs=2, eigs_tol=1e-6, observe=[Alignment(every=steps(3)), functions]
    )  # fmt: skip
    assert run.alignment.dims == ("time", "mode")
    assert run["first"].dims == ("time", "first_dim_0")
    assert (run.alignment.attrs["long_name"], run.alignment.attrs["units"]) == (
        "cosine of gradient and eigenvector",
        "1",
    )
    assert run.curvature.attrs["units"] == "1/time"
    assert run.weight_norm.attrs == {"units": "1", "long_name": "weight norm"}
    assert np.allclose(run.weight_norm, np.linalg.norm(run.theta, axis=1), rtol=1e-14)
    assert np.array_equal(run["first"], run.theta[:, :2])
    assert np.isfinite(run.alignment[:, 0]).values.tolist() == [True, False, False] * 2 + [True]
    due = [0, 3, 6]
    assert np.array_equal(run.curvature[due], run.eigenvalue[due])
    eye = torch.eye(len(theta), dtype=double)
    for row in due:
        θ = torch.from_numpy(run.theta.values[row])
        λ, V = torch.linalg.eigh(train.hvp(θ, eye))
        g = train.gradient(θ)[1]
        assert np.allclose(run.curvature[row], λ.flip(0)[:2], rtol=1e-6)
        assert np.allclose(run.alignment[row], (V.flip(1)[:, :2].T @ g).abs() / g.norm(), atol=1e-4)


def test_a_mapping_takes_instances_too_and_names_are_unlike():
    run = descend(observe={"way": Path(), "norm": lambda point: float(point.theta.norm())})
    assert np.allclose(run.path.diff("time"), np.linalg.norm(run.theta.diff("time"), axis=1))
    assert sorted(json.loads(run.attrs["gradflow_config"])["observe"]) == ["Path", "norm"]


def test_the_point_offers_time_step_and_what_the_flow_knows():
    def look(point):
        θ = point.theta
        assert torch.equal(point.gradient, SCALE * θ)
        assert torch.equal(point.hvp(ONES), SCALE)
        assert torch.allclose(point.velocity, -SCALE * θ)
        assert point.loss == float(bowl(θ))
        assert torch.allclose(point.top(2, tol=1e-8).values, torch.tensor([4.0, 2.0], dtype=double))
        return [point.t, point.step]

    for method, options in (("rk4", {"max_step": 0.1}), ("exprb43", {}), ("gd", {"lr": 0.1})):
        run = gradflow.integrate(
            bowl, ONES, method=method, t_max=0.5, save_every=0.1, observe={"at": look}, **options
        )
        assert np.array_equal(run["at"][:, 0], run.time)
        assert np.array_equal(run["at"][:, 1], run.step)


def test_without_a_cadence_it_is_measured_at_each_record():
    run = descend(
        max_steps=6, save_every=steps(6), params_every=steps(2), observe={"n": lambda point: point.step}
    )
    assert run.n.values.tolist() == [0, 2, 4, 6]


def test_what_has_no_value_at_first_takes_its_dimensions_from_others():
    class Change(Observer):
        variables = {"value": Variable(("k",)), "change": Variable(("k",))}
        last = None

        def measure(self, point):
            found = {"value": point.theta}
            if self.last is not None:
                found["change"] = point.theta - self.last
            self.last = point.theta
            return found

    run = descend(observe=[Change()])
    assert np.isnan(run.change[0]).all()
    assert np.array_equal(run.change[1:], run.theta.values[1:] - run.theta.values[:-1])


def test_coordinates_are_in_the_file(tmp_path):
    class Histogram(Observer):
        variables = {"count": Variable(("bin",), "parameters in the bin")}
        coordinates = {"bin": (Variable(("bin",), "left edge"), np.array([0.0, 0.5]))}

        def measure(self, point):
            return {"count": torch.histc(point.theta, 2, 0, 1)}

    descend(observe=[Histogram()], out=tmp_path / "x.nc").close()
    with xr.open_dataset(tmp_path / "x.nc") as run:
        assert run.bin.values.tolist() == [0.0, 0.5]
        assert "bin" in run.coords
        assert run["count"].sum("bin").values.tolist() == [3.0] * 5
        assert run["count"][0].sel(bin=0.5) == 3


@pytest.mark.parametrize("sync_every", [0.0, 1e9])
def test_file_and_memory_hold_the_same(sync_every, tmp_path):
    options = {"n_eigs": 1}
    functions = {
        "norm": lambda point: point.theta.norm(),
        "matrix": lambda point: torch.outer(point.theta, ONES),
    }
    memory = descend(observe=[Path(every=steps(2)), functions], **options)
    file = descend(
        observe=[Path(every=steps(2)), functions], out=tmp_path / "x.nc", sync_every=sync_every, **options
    )
    assert list(file.variables) == list(memory.variables)
    assert_same(memory, file)
    for name in memory.variables:
        assert (file[name].dims, file[name].dtype) == (memory[name].dims, memory[name].dtype)
        assert file[name].attrs == memory[name].attrs


# ---------------------------------------------------------------------- the run doesn't notice


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rk4", {}),
        ("exprb43", {"dense": False}),
        ("adam", {"lr": 0.01}),
        ("sgd", {"lr": 0.05, "batch_size": 7}),
        ("lbfgs", {"lr": 0.5, "max_iter": 3}),
    ],
)
def test_observing_never_changes_the_run(method, options, chebyshev):
    """Nor what is recorded beside: neither θ, nor cost, nor the eigenvalues that we record."""
    train, _, theta = chebyshev
    options = {"method": method, "max_steps": 8, "n_eigs": 2, "save_every": steps(2), **options}
    bare = gradflow.integrate(train, theta, **options)
    watched = gradflow.integrate(
        train, theta, observe=[Alignment(k=3, tol=1e-8, every=steps(3)), Vandal(every=steps(1))], **options
    )
    rows = [watched.step.values.tolist().index(step) for step in bare.step.values]
    assert_same(bare, watched.isel(time=rows))
    assert watched.attrs["n_steps"] == bare.attrs["n_steps"] == 8
    assert watched.attrs["n_hvps_observing"] > bare.attrs["n_hvps_observing"]


def looks():
    return {
        "length": lambda point: point.theta.norm(),
        "place": lambda point: point.z.norm(),
        "slope": lambda point: point.gradient.norm(),
        "speed": lambda point: point.velocity.norm(),
        "bend": lambda point: point.hvp(point.gradient).norm(),
    }


@pytest.mark.parametrize("method", ["rk4", "exprb43"])  # one whose graphs observers share, and one without
def test_what_an_observer_writes_to_no_other_one_sees(method, chebyshev):
    train, _, theta = chebyshev
    options = {"method": method, "t_max": 0.5, "save_every": 0.1, "params_every": 0.1}
    bare = gradflow.integrate(train, theta, observe=looks(), **options)

    def vandal(point):
        Vandal().measure(point)
        point.linearization.gradient.zero_()
        point.linearization.theta.zero_()
        return -1.0

    watched = gradflow.integrate(
        train, theta,
        observe=[Vandal(), {"vandal": vandal}, looks()],
        events=[gradflow.Event(vandal)],
        **options,
    )  # fmt: skip
    for name in (*looks(), "theta", "params", "train_loss", "gradient_norm", "n_gradients", "n_hvps"):
        assert np.array_equal(bare[name], watched[name]), name


def test_what_several_ask_for_is_computed_once():
    """And nothing that the run knows is computed again."""
    case = zoo.make("mlp-mse")
    loss = gradflow.LossFunction(case.dataset, case.criterion, case.net)
    alone = descend(loss, loss.parameters(), observe={"a": lambda point: point.hvp(point.gradient)})
    assert alone.attrs["n_gradients_observing"] == 5  # a graph at each record
    assert alone.attrs["n_hvps_observing"] == 5
    both = descend(
        loss, loss.parameters(),
        observe={"a": lambda point: point.hvp(point.gradient), "b": lambda point: point.hvp(point.theta)},
    )  # fmt: skip
    assert both.attrs["n_gradients_observing"] == 5
    assert both.attrs["n_hvps_observing"] == 10
    cheap = descend(loss, loss.parameters(), observe={"a": lambda point: point.gradient.norm() * point.loss})
    assert cheap.attrs["n_gradients_observing"] == 0
    tops = {"a": lambda point: point.top(2).values, "b": lambda point: point.top(1).values}
    once, twice = (descend(loss, loss.parameters(), n_eigs=2, observe=o) for o in (None, tops))
    assert once.attrs["n_hvps_observing"] == twice.attrs["n_hvps_observing"]
    assert np.array_equal(twice["a"], twice.eigenvalue)
    assert np.array_equal(twice["b"], twice.eigenvalue[:, :1])


@pytest.mark.parametrize("method", ["gd", "rk4"])
def test_the_graphs_of_a_record_are_gone_when_the_next_step_is_taken(method, chebyshev):
    train, _, theta = chebyshev
    seen, alive = [], []

    def look(point):
        seen.append(weakref.ref(point.linearization))
        return point.hvp(point.gradient).norm()

    def callback(report):
        gc.collect()
        alive.append(sum(each() is not None for each in seen))

    options = {"method": method, "max_steps": 5, "save_every": steps(2), "n_eigs": 2}
    options |= {"lr": 0.01} if method == "gd" else {"max_step": 0.01, "t_max": 9.0}
    gradflow.integrate(train, theta, observe={"bend": look}, callback=callback, **options)
    assert len(seen) == 4
    assert alive == [0] * 5


# ---------------------------------------------------------------------- resume


class Died(Exception):
    pass


def dies_after(n):
    def callback(report):
        if report.step == n:
            raise Died

    return callback


def observers(scale=1.0):
    return [Path(scale, every=steps(2)), Alignment(), {"first": lambda point: point.theta[:2]}]


@pytest.mark.parametrize(
    ("method", "options"),
    [("gd", {"lr": 0.1}), ("exprb32", {"dense": False}), ("sgd", {"lr": 0.05, "batch_size": 7})],
)
def test_an_observer_goes_on_as_if_nothing_had_happened(method, options, chebyshev, tmp_path):
    train, _, theta = chebyshev
    options = {"method": method, "max_steps": 12, "save_every": steps(1), **options}
    whole = gradflow.integrate(train, theta, observe=observers(), **options)
    path = tmp_path / "x.nc"
    with pytest.raises(Died):
        gradflow.integrate(
            train,
            theta,
            observe=observers(),
            out=path,
            checkpoint_every=1e-9,
            callback=dies_after(7),
            **options,
        )
    assert "path" in gradflow.open_run(path)
    with gradflow.integrate(train, theta, observe=observers(), resume=path, **options) as resumed:
        assert_same(whole, resumed)
        assert whole.attrs["n_hvps_observing"] == resumed.attrs["n_hvps_observing"]
        assert resumed["first"].dims == ("time", "first_dim_0")


def test_other_observers_make_another_run(tmp_path):
    path = tmp_path / "x.nc"
    with pytest.raises(Died):
        descend(observe=observers(), out=path, callback=dies_after(2))
    for other in (None, observers(2.0), observers()[:2]):
        with pytest.raises(ResumeError, match=r"it was another one: .*observe was"):
            descend(observe=other, resume=path)
    descend(observe=observers(), out=path, resume="auto").close()
    for other in (None, observers(2.0), observers()[:2]):
        with pytest.raises(ResumeError, match="observe was"):
            descend(observe=other, out=path, resume="auto")
    with descend(observe=observers(), out=path, resume="auto") as again:
        assert again.attrs["status"] == "max_steps"
    descend(out=tmp_path / "none.nc").close()
    with pytest.raises(ResumeError, match=r"observe was \{\}, is"):
        descend(observe=observers(), out=tmp_path / "none.nc", resume="auto")
    descend(out=tmp_path / "none.nc", resume="auto").close()


def test_the_configuration_names_observers_with_their_options():
    class Distance(Observer):
        variables = {"distance": Variable()}

        def __init__(self, reference, every=None):
            self.reference, self.every = reference, every

        def measure(self, point):
            return {"distance": (point.theta - self.reference).norm()}

        def settings(self):
            return {"reference": "the origin", "every": self.every}

    @dataclass
    class Shifted(Observer):
        reference: torch.Tensor
        variables = {"shifted": Variable()}

        def measure(self, point):
            return {"shifted": (point.theta - self.reference).norm()}

    run = descend(observe=[Distance(0 * ONES, every=steps(2)), Shifted(ONES), Path()])
    stored = json.loads(run.attrs["gradflow_config"])["observe"]
    assert stored["Distance"] == {"reference": "the origin", "every": {"n": 2, "of": None}}
    assert stored["Path"] == {"class": "Path", "every": None, "scale": 1.0}
    assert "float64 of shape (3,), SHA-256 " in stored["Shifted"]["reference"]
    assert json.loads(run.attrs["gradflow_config"])["cadences"]["Distance"] == [{"n": 2}]
    assert "observe" not in json.loads(descend().attrs["gradflow_config"])


# ---------------------------------------------------------------------- flows with a state of their own


@dataclass(frozen=True)
class HeavyBall(gradflow.Flow):
    """θ'' = −γ θ' − ∇L: z = (θ, θ')."""

    friction: float
    name = "heavy ball"
    variables = {"kinetic_energy": Variable(long_name="kinetic energy")}

    def initial(self, theta):
        return torch.cat([theta, torch.zeros_like(theta)])

    def theta(self, z):
        return z[: len(z) // 2]

    def velocity(self, point):
        v = point.z[len(point.z) // 2 :]
        return torch.cat([v, -self.friction * v - point.gradient])

    def measure(self, point):
        return {"kinetic_energy": 0.5 * (point.z[len(point.z) // 2 :] ** 2).sum()}


@pytest.mark.parametrize(
    ("method", "options", "tol"),
    [("rk4", {"max_step": 0.02}, 1e-8), ("rkc", {"rtol": 1e-6, "atol": 1e-8}, 1e-4)],
)
def test_a_state_larger_than_theta_is_recorded_and_resumed(method, options, tol, tmp_path):
    flow = HeavyBall(3.0)
    options = {"flow": flow, "method": method, "t_max": 1.0, "save_every": 0.25, **options}
    whole = gradflow.integrate(bowl, ONES, observe={"norm": lambda point: point.theta.norm()}, **options)
    assert whole.state.dims == ("time", "z")
    assert whole.state.attrs["long_name"]
    assert np.array_equal(whole.state[:, :3], whole.theta)
    assert np.allclose(whole.kinetic_energy, 0.5 * (whole.state[:, 3:] ** 2).sum("z"), rtol=1e-14)
    for i, s in enumerate(SCALE.tolist()):  # λ² + 3λ + s = 0
        A = np.array([[0.0, 1.0], [-s, -3.0]])
        λ, V = np.linalg.eig(A.astype(complex))
        at = (V @ (np.exp(λ * 1.0) * np.linalg.solve(V, [1.0, 0.0]))).real
        assert np.allclose(whole.state[-1, [i, 3 + i]], at, atol=tol)
    path = tmp_path / "x.nc"
    with pytest.raises(Died):
        gradflow.integrate(
            bowl, ONES, observe={"norm": lambda point: point.theta.norm()}, out=path, checkpoint_every=1e-9,
            callback=dies_after(2), **options,
        )  # fmt: skip
    with gradflow.integrate(
        bowl, ONES, observe={"norm": lambda point: point.theta.norm()}, resume=path, **options
    ) as resumed:
        assert_same(whole, resumed)


def test_third_derivatives_are_counted_where_they_are_taken(chebyshev):
    train, _, theta = chebyshev
    options = {"t_max": 0.2, "save_every": 0.1, "method": "exprb32"}
    run = gradflow.integrate(train, theta, flow="modified", lr=0.01, dense=False, **options)
    assert run.n_third.dtype == np.int64
    assert run.n_third.attrs["long_name"]
    assert run.n_third[0] == 0
    assert run.n_third[1] > 0
    assert (run.n_third.diff("time") >= 0).all()
    assert run.attrs["n_third_observing"] == 0
    bare = gradflow.integrate(train, theta, **options)
    assert "n_third" not in bare
    assert "n_third_observing" not in bare.attrs
    assert "state" not in bare


# ---------------------------------------------------------------------- mistakes


def measuring(value, dims=(), name="thing"):
    class Mine(Observer):
        variables = {name: Variable(dims)}

        def measure(self, point):
            return value(point) if callable(value) else value

    return Mine()


def unit_of(units):
    observer = measuring({"thing": 1.0})
    observer.variables = {"thing": Variable(units=units)}
    return observer


def listing():
    observer = measuring({"thing": 1.0})
    observer.variables = ["thing"]
    return observer


@pytest.mark.parametrize(
    ("observe", "kind", "message"),
    [
        (Path, TypeError, "got one alone"),
        (Path(), TypeError, "Put it into a list"),
        ([Path], TypeError, r"got the class: Path\(…\)"),
        ([3], TypeError, "to hold instances of gradflow.Observer, got int"),
        (3, TypeError, "a mapping of names to functions, got int"),
        ("loss", TypeError, "a mapping of names to functions, got str"),
        ({"a": 3}, TypeError, r"observe\['a'\] as a function of the point, got int 3"),
        ({3: abs}, TypeError, "names in observe as str, got int 3"),
        ({"a b": abs}, ValueError, "letters, digits and _, got 'a b'"),
        ({"theta": abs}, ValueError, "theta records 'theta', which is a variable of gradflow"),
        ({"test_loss": abs}, ValueError, "which is a variable of gradflow"),
        ([Path(), Path()], ValueError, "Path 2 records 'path', which is a variable of Path"),
        ([measuring({}, dims="abc")], TypeError, "as a tuple of names, got 'abc'"),
        ([measuring({}, dims=("time",))], ValueError, "without time, which all have"),
        ([measuring({}, dims=("a", "a"))], ValueError, "to differ, got"),
        ([measuring({}, dims=("step",))], ValueError, "'step' is a dimension of 'thing' of Mine, and a variable"),
        ([unit_of(3)], TypeError, "long_name and units of 'thing' of Mine as text, got '' and 3"),
        ([listing()], TypeError, "the variables of Mine as a mapping of names to gradflow.Variable, got list"),
        ([Path(every=-1.0)], ValueError, "Expected every of Path"),
        ([Path(every="often")], TypeError, "Expected every of Path as a time"),
        ([measuring({}, dims=("a",))], ValueError, "The first record has no 'thing'.* Return NaN of its shape"),
        ([measuring(1.0)], TypeError, "Mine.measure to return a mapping of variables to values, got float"),
        ([measuring({"other": 1.0})], ValueError, "returned 'other', which isn't among its variables: thing"),
        ([measuring({"thing": "much"})], TypeError, "as a number, an array or a tensor of real numbers, got str"),
        ([measuring({"thing": None})], TypeError, "of real numbers, got NoneType"),
        ([measuring({"thing": 1j})], TypeError, "of real numbers, got complex"),
        ([measuring({"thing": [[1.0], [1.0, 2.0]]})], TypeError, "of real numbers, got list"),
        ([measuring({"thing": [1.0, 2.0]})], ValueError, r"with no dimensions, a number, got shape \(2,\)"),
        ([measuring({"thing": 1.0}, dims=("a",))], ValueError, r"with dimensions \('a',\), got shape \(\)"),
        ([measuring({"thing": [1.0]}, dims=("param",))], ValueError, "of size 3 along 'param'.*got 1"),
        (
            [measuring(lambda p: {"thing": np.ones(1 + p.step)}, dims=("a",))],
            ValueError,
            "'thing' of size 1 along 'a', as that dimension has had so far, got 2",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told(observe, kind, message):
    with pytest.raises(kind, match=message) as caught:
        descend(observe=observe)
    assert isinstance(caught.value, gradflow.GradflowError)


def test_what_a_function_raises_says_whose_it_is(tmp_path):
    def fails(point):
        if point.step == 2:
            raise ZeroDivisionError("mine")
        return 1.0

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        descend(observe={"mine": fails}, out=tmp_path / "x.nc", sync_every=0)
    assert "Raised by the observer 'mine' at t = 0.2." in caught.value.__notes__
    assert gradflow.open_run(tmp_path / "x.nc")["mine"].values.tolist() == [1.0, 1.0]


def test_a_mistake_at_the_first_record_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError, match="as a number, an array or a tensor"):
        descend(observe={"word": lambda point: "much"}, out=tmp_path / "x.nc")
    assert list(tmp_path.iterdir()) == []
    descend(observe={"word": lambda point: 1}, out=tmp_path / "x.nc").close()


def test_a_kind_of_number_without_nan_is_refused():
    class Mine(Observer):
        variables = {"n": Variable(dtype="int64")}

        def measure(self, point):
            return {"n": 1}

    with pytest.raises(ValueError, match='the dtype of \'n\' of Mine as "float32", "float64" or None'):
        descend(observe=[Mine()])


def test_a_state_that_a_checkpoint_cannot_give_back_is_refused_at_the_start(tmp_path):
    class Mine(Path):
        def state_dict(self):
            return {"found": [{1, 2}]}

    with pytest.raises(TypeError, match=r"the state of the observer 'Mine' in dicts.* got set"):
        descend(observe=[Mine()], out=tmp_path / "x.nc", callback=dies_after(1))


def test_two_of_a_class_are_told_apart_by_their_names():
    @dataclass
    class Norm(Observer):
        reference: torch.Tensor
        called: str

        def __post_init__(self):
            self.variables = {self.called: Variable()}

        def measure(self, point):
            return {self.called: (point.theta - self.reference).norm()}

    run = descend(observe=[Norm(ONES, "from_ones"), Norm(2 * ONES, "from_twos")])
    assert set(json.loads(run.attrs["gradflow_config"])["observe"]) == {"Norm", "Norm 2"}
    assert run.from_ones[0] == 0
    assert run.from_twos[0] == pytest.approx(math.sqrt(3))


def test_the_variables_of_events_are_taken():
    with pytest.raises(ValueError, match="event_loss records 'event_loss', which is a variable of an event"):
        descend(observe={"event_loss": lambda point: 7.0}, events=[gradflow.Event("loss", 1.0)])


def test_units_are_text(tmp_path):
    class Mine(Path):
        variables = {"path": Variable(units=None)}

    with pytest.raises(TypeError, match="long_name and units of 'path' of Mine as text, got '' and None"):
        descend(observe=[Mine()], out=tmp_path / "x.nc")
    assert not list(tmp_path.iterdir())


def test_what_the_quantity_of_an_event_raises_says_so():
    with pytest.raises(ZeroDivisionError) as caught:
        descend(events=[gradflow.Event(lambda point: 1 / 0)])
    assert caught.value.__notes__ == ["Raised by the quantity of an event at t = 0."]


def test_nan_is_a_value():
    run = descend(observe={"a": lambda point: math.nan, "b": lambda point: torch.full((2,), math.nan)})
    assert np.isnan(run["a"]).all()
    assert np.isnan(run["b"]).all()
