"""The registry: declaring ops and kernels, choosing a backend, dispatching, watching."""

import importlib
import inspect
import threading
from dataclasses import replace

import numpy as np
import pytest

import refsd
from refsd import functional as F
from refsd import registry
from refsd.backends import BACKENDS, Backend, available_backends, choose_backend
from refsd.errors import UsageError
from refsd.kinds import Map, Pair
from refsd.options import Flag


@pytest.fixture
def other(monkeypatch):
    """A backend whose silu says so, and which has no other kernel."""
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    monkeypatch.setitem(BACKENDS, "other", Backend("other", "refsd.ops"))

    @registry.kernel("other")
    def silu(x):
        return np.full_like(x, 7)

    return silu


def x():
    return np.array([1.0, -2.0, 3.0], "float32")


def test_an_op_is_returned_unchanged():
    from refsd.ops.activation import silu

    assert inspect.isfunction(silu) and silu.__module__ == "refsd.ops.activation"
    assert registry.ops()["silu"].definition is silu
    assert "sigmoid" in inspect.getsource(silu)


def test_F_has_every_op_with_its_signature_and_docstring():
    for name, op in registry.ops().items():
        public = getattr(F, name)
        assert public is not op.definition
        assert inspect.signature(public) == op.signature == inspect.signature(op.contract)
        assert public.__doc__ == op.definition.__doc__ and public.__doc__
        assert public.__name__ == name
    functions = {name for name, value in vars(F).items() if hasattr(value, "__wrapped__")}
    assert functions == set(registry.ops())


def test_every_op_has_a_kernel_on_every_backend():
    for backend in available_backends():
        importlib.import_module(BACKENDS[backend].module)
        missing = [name for name, op in registry.ops().items() if (
            (backend, name) not in registry._kernels and not (
                backend == "cuda" and op.family == "fused"))]  # tests/cuda/test_every_op.py lists
        assert not missing, f"{backend} lacks {missing}"


def test_what_changes_numbers_has_no_default():
    """Defaults are for what leaves the formula alone: no mask, weight or bias, one group."""
    harmless = {("linear", "bias"): None, ("conv2d", "bias"): None, ("conv2d", "stride"): 1,
                ("conv2d", "padding"): 0, ("conv2d", "dilation"): 1, ("conv2d", "groups"): 1,
                ("conv2d", "algorithm"): "auto", ("attention", "mask"): None,
                ("attention", "causal"): False, ("layer_norm", "weight"): None,
                ("layer_norm", "bias"): None, ("linear_add", "bias"): None,
                ("linear_geglu", "bias"): None}
    harmless |= {(name, option): default for (op, option), default in harmless.items()
                 for name in ("conv2d_add", "upsample_conv2d") if op == "conv2d"}
    found = {(name, p.name): p.default for name, op in registry.ops().items()
             for p in op.signature.parameters.values() if p.default is not p.empty}
    assert found == harmless


def test_a_kernel_with_another_signature_is_an_import_error(other):
    with pytest.raises(ImportError, match=r"the other kernel gelu has the signature \(y\), its op "
                                          r"has \(x\)"):
        @registry.kernel("other")
        def gelu(y):
            return y

    with pytest.raises(ImportError, match=r"layer_norm has the signature .*eps=1e-05"):
        @registry.kernel("other")
        def layer_norm(x, weight, bias, *, eps=1e-5):
            return x

    assert ("other", "gelu") not in registry._kernels


def test_a_kernel_of_no_op_is_an_import_error(other):
    with pytest.raises(ImportError, match="kernel swish for other: there is no op of that name"):
        @registry.kernel("other")
        def swish(x):
            return x


@pytest.mark.parametrize("shapes", ["x (...) -> (...)", "x (...), y (...) -> (...)", "x (...)"])
def test_a_contract_that_leaves_a_parameter_out_is_an_import_error(monkeypatch, shapes):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))
    with pytest.raises(ImportError, match=r"the contract of twice declares x.*; its parameters are "
                                          r"x, times"):
        @registry.op(shapes)
        def twice(x, *, times):
            return x * times

    assert "twice" not in registry._ops


@pytest.mark.parametrize("shapes, kind, more, message", [
    ("x (...) -> (...)", Pair(), {}, "is declared a Pair, of 2 arrays, and has 1"),
    ("x (...), times (...) -> (...)", Map(), {}, "is declared a Map, of 1 arrays, and has 2"),
    ("x (...) -> (...)", Map(), {"times": Flag()}, "has options: state an example of a call")])
def test_a_kind_that_does_not_fit_is_an_import_error(own_ops, shapes, kind, more, message):
    """Sample calls could not be made."""
    def twice(x, *, times=2):
        return x

    def plain(x):
        return x

    takes_times = more or "times" in shapes
    with pytest.raises(ImportError, match=message):
        registry.op(shapes, kind, **more)(twice if takes_times else plain)


@pytest.mark.parametrize("name", sorted(registry.ops()))
def test_a_second_op_or_kernel_of_a_name_is_an_import_error(own_ops, name):
    op, before = registry.ops()[name], registry.kernels(name)

    def other(*args, **options):
        return None

    other.__name__, other.__signature__ = name, op.signature
    with pytest.raises(ImportError, match=f"a second op {name} in test_registry.*: the first is in "
                                          f"refsd.ops.*{name}. Give it another name"):
        registry.op(", ".join(f"{p} (...)" for p in op.signature.parameters) + " -> (...)")(other)
    for backend in before:
        with pytest.raises(ImportError, match=f"a second {backend} kernel {name} in test_registry"):
            registry.kernel(backend)(other)
    assert registry.ops()[name] is op and registry.kernels(name) == before


def test_the_same_function_may_be_declared_again(own_ops):
    """A module is reloaded, a cell run again: the last one counts, contract and all."""
    def declare(answer):
        @registry.op("x (...) -> (...)", flops=str(answer))
        def thrice(x):
            return answer * x

        @registry.kernel("numba")
        def thrice(x):  # noqa: F811  the kernel has the op's name
            return answer * x

    for answer in (3, 4):
        declare(answer)
        with registry.trace(lambda op, inputs, options, inferred: inferred):
            assert registry.dispatch("thrice", (x(),), {}).flops == answer
        for backend in ("numpy", "numba"):
            with refsd.use(backend):
                assert registry.dispatch("thrice", (x(),), {}).tolist() == (answer * x()).tolist()


def test_use_sends_ops_to_another_backend_and_nests(other):
    assert registry.active_backend() == "numpy"
    with refsd.use("other"):
        assert F.silu(x()).tolist() == [7, 7, 7]
        with refsd.use("numpy"):
            assert F.silu(x()).tolist() != [7, 7, 7]
        assert registry.active_backend() == "other"
    assert registry.active_backend() == "numpy"


def test_use_ends_with_an_error_too(other):
    with pytest.raises(KeyError), refsd.use("other"):
        raise KeyError
    assert registry.active_backend() == "numpy"


def test_a_new_thread_starts_from_the_default(other):
    seen = []
    with refsd.use("other"):
        thread = threading.Thread(target=lambda: seen.append(registry.active_backend()))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


@pytest.mark.parametrize("name", ["nunba", "", "NUMPY", "cuda:0"])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(UsageError) as caught, refsd.use(name):
        pass
    known = ", ".join(BACKENDS)
    assert str(caught.value) == f"backend {name!r} is not one of: auto, {known}; give one"
    assert registry.active_backend() == "numpy"


def test_auto_is_the_first_backend():
    first = available_backends()[0]
    assert choose_backend() == choose_backend("auto") == first
    with refsd.use("auto"):
        assert registry.active_backend() == first


def test_a_missing_kernel_raises_and_says_where_there_is_one(other):
    with refsd.use("other"), pytest.raises(UsageError) as caught:
        F.gelu(x())
    message, _, names = str(caught.value).partition("; take one of: ")
    assert message == "gelu has no kernel on the backend 'other'"
    assert "numpy" in names.split(", ") and "other" not in names


def test_watch_is_called_with_the_op_its_inputs_its_options_and_its_output():
    calls = []
    weight, bias = np.ones(3, "float32"), np.zeros(3, "float32")
    q = np.ones((1, 2, 4), "float32")
    with refsd.watch(lambda *event: calls.append(event)):
        y = F.layer_norm(x(), weight, bias=bias, eps=1e-5)
        F.attention(q, q, v=q, heads=2)
        F.concat([weight, bias], axis=0)
    name, inputs, options, output = calls[0]
    assert name == "layer_norm" and output is y and options == {"eps": 1e-5}
    assert list(inputs) == ["x", "weight", "bias"]
    assert inputs["weight"] is weight and inputs["bias"] is bias  # the very arrays
    name, inputs, options, _ = calls[1]
    assert list(inputs) == ["q", "k", "v"] and all(v is q for v in inputs.values())
    assert options == {"heads": 2, "mask": None, "causal": False}
    name, inputs, options, _ = calls[2]
    assert name == "concat" and inputs["arrays"][0] is weight
    F.silu(x())
    assert len(calls) == 3  # the listener left with its block


def test_listeners_nest_and_the_inner_one_is_called_first():
    calls = []
    with refsd.watch(lambda op, *_: calls.append(f"outer {op}")):
        F.silu(x())
        with refsd.watch(lambda op, *_: calls.append(f"inner {op}")):
            F.gelu(x())
        F.exp(x())
    assert calls == ["outer silu", "inner gelu", "outer gelu", "outer exp"]


def test_one_op_is_one_event():
    """geglu calls gelu's definition, not gelu the op."""
    calls = []
    with refsd.watch(lambda op, *_: calls.append(op)):
        F.geglu(np.ones((2, 4)))
        F.attention(*[np.ones((1, 2, 4))] * 3, heads=2)
    assert calls == ["geglu", "attention"]


def test_a_listener_is_called_on_every_backend_and_not_from_other_threads(other):
    calls = []
    with refsd.watch(lambda op, *_: calls.append(op)), refsd.use("other"):
        F.silu(x())
        thread = threading.Thread(target=lambda: F.silu(x()))
        thread.start()
        thread.join()
    assert calls == ["silu"]


def test_within_none_nobody_hears():
    calls = []
    with refsd.watch(lambda op, *_: calls.append(op)):
        with refsd.watch(None):
            assert not registry.is_watched()
            F.exp(np.zeros(1))
        assert registry.is_watched()
    assert calls == []


def test_an_error_of_the_watcher_reaches_the_caller():
    def refuse(*event):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"), refsd.watch(refuse):
        F.silu(x())
    F.silu(x())


def test_nothing_is_called_when_the_contract_refuses(monkeypatch):
    calls = []
    monkeypatch.setattr(registry, "_kernels", {key: lambda *a, **k: calls.append(a)
                                               for key in registry._kernels})
    with refsd.watch(lambda *event: calls.append(event)), pytest.raises(UsageError):
        F.layer_norm(x(), np.ones(4, "float32"), np.zeros(3, "float32"), eps=1e-5)
    assert calls == []


def test_a_missing_or_unknown_argument_is_a_type_error_that_names_it():
    with pytest.raises(TypeError, match="'eps'"):
        F.layer_norm(x(), x(), x())
    with pytest.raises(TypeError, match="'colour'"):
        F.silu(x(), colour="red")


def test_a_tracer_answers_for_every_backend():
    asked = []

    def answer(op, inputs, options, inferred):
        asked.append((op, sorted(inputs), options, inferred.shape))
        return "traced"

    calls = []
    x = np.ones((2, 3), "float32")
    with registry.watch(lambda *event: calls.append(event)):
        with registry.trace(answer):
            with registry.use("numba"):
                assert F.softmax(x, axis=1) == "traced"
            with pytest.raises(UsageError):
                F.softmax(x, axis=2)
        assert F.silu(x).shape == (2, 3)
    assert asked == [("softmax", ["x"], {"axis": 1}, (2, 3))]
    assert [event[0] for event in calls] == ["silu"]


def test_an_accepted_call_is_not_judged_again(monkeypatch):
    judged = []
    silu = registry._ops["silu"]
    monkeypatch.setattr(registry, "_inferred", {})
    monkeypatch.setitem(registry._ops, "silu", silu._replace(
        contract=replace(silu.contract, infer=lambda x: judged.append(x.shape) or {})))
    for array in (x(), x() + 1, x()[:2], x()[:2], x().astype("f8")):
        F.silu(array)
    assert judged == [(3,), (2,), (3,)]


@pytest.mark.parametrize("good, bad", [
    (1, True), (1, 1.0), (1, np.float64(1)), (np.int64(1), np.int64(-1)), (1, np.array(0)),
    ((1, 1), (1, 1.0)), (1, {}), (((0, 1), (0, 1)), ((0, 1), (0, True)))])
def test_accepting_one_option_accepts_no_other(good, bad):
    picture, weight = np.ones((1, 1, 4, 4)), np.ones((1, 1, 1, 1))
    F.conv2d(picture, weight, padding=good)
    for _ in range(2):
        with pytest.raises(UsageError, match="conv2d: padding"):
            F.conv2d(picture, weight, padding=bad)


def test_accepting_some_arrays_accepts_no_others():
    ones = np.ones((2, 3), "f4")
    F.concat([ones, ones], axis=0)
    for bad in ([ones, ones.astype("f8")], [ones, ones[:, :2]], [ones, ones.tolist()], [ones, 1]):
        with pytest.raises(UsageError, match="concat"):
            F.concat(bad, axis=0)


def test_accepted_calls_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(registry, "_inferred", {})
    monkeypatch.setattr(registry, "INFER_CACHE_SIZE", 4)
    for n in range(20):
        F.silu(np.ones(n, "f4"))
        assert 1 <= len(registry._inferred) <= 4
