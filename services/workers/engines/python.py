"""Calls a Python function, or a method of an object it makes, from an installed package.

    params: {call: "my_package.sentiment:classify"}
    params: {make: "my_package.scoring:model", method: predict_proba}

Which modules may be called is the operator's to say (`CLAWDBOT_PYTHON_ALLOW`); nothing is imported
from the models directory, and nothing is unpickled.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from typing_extensions import override

from schemas.catalogue import Port
from schemas.errors import (
    ClawdbotError,
    EngineFailed,
    FailedPrecondition,
    InvalidArgument,
    ModelUnavailable,
)
from schemas.values import Binary, Tensor, Value
from services.workers.engine import Request
from services.workers.engines import fields
from services.workers.engines.tensor_engine import (
    TensorEngine,
    array_of,
    check_tensor,
    tensor_of,
)


if TYPE_CHECKING:
    from numpy.typing import NDArray

_OWN = {"call", "make", "method", "allow", "threads"}
"""Params of the catalogue entry that are not the function's."""


class PythonEngine(TensorEngine):
    """Inputs go in by name, tensors as numpy arrays; what comes out is named by the outputs.

    Params of the catalogue entry: `call`, a function `module:name`; or `make`, a function that is
    called once with the folder of the model's source (None without one) and returns a function,
    or an object of which `method` is called (scikit-learn: `predict`, `predict_proba`). The others
    are handed to the function by name, and a request's own over them.

    A function returns a mapping by output, or the one output, or as many as there are in a tuple.
    With `max_batch_size` inputs and outputs are tensors, and it is called for many rows at once.
    """

    function: Callable[..., Any] | None = None

    @override
    def missing(self) -> str | None:
        absent = fields.missing_package("numpy")
        if absent is not None:
            return absent
        try:
            self._check_module(self._target()[0])
        except ModelUnavailable as error:
            return error.message
        return None

    @override
    def load(self) -> None:
        """Import the function; call what makes it.

        Raises:
            ModelUnavailable: Not allowed, not there, or it cannot be called as declared.
        """
        module, name = self._target()
        self._check_module(module)
        text = f"{module}:{name}"
        try:
            found = getattr(import_module(module), name)
            if "make" in self.spec.params:
                found = found(self._folder())
        except ModelUnavailable:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"'{text}' cannot be loaded: {type(error).__name__}", cause=str(error)
            ) from error
        method = self.spec.params.get("method")
        if method is not None:
            found = getattr(found, str(method), None)
        if not callable(found):
            what = text if method is None else f"{method} of what {text} gives"
            raise ModelUnavailable(f"'{what}' is no function")
        if self.spec.max_batch_size:
            self.check_ports()
        self._check_signature(found, text)
        self.function = found

    @override
    def infer(self, batch: Sequence[Request]) -> list[Mapping[str, Value]]:
        if self.spec.max_batch_size:
            return super().infer(batch)
        return [self._one(request) for request in batch]

    @override
    def batch_key(self, request: Request) -> Hashable | None:
        """Return what the tensors share, and the params."""
        key = super().batch_key(request)
        return None if key is None else (key, repr(sorted(self._params(request.params).items())))

    @override
    def compute(
        self, feeds: "Mapping[str, NDArray[Any]]", params: Mapping[str, Any]
    ) -> "Sequence[NDArray[Any]]":
        import numpy as np

        by_name = {port.name: feeds[port.tensor_name] for port in self.spec.inputs}
        found = self._named(self._run(by_name, self._params(params)))
        return [np.asarray(found[port.name]) for port in self.spec.outputs]

    @override
    def close(self) -> None:
        self.function = None

    def _one(self, request: Request) -> Mapping[str, Value]:
        inputs = {
            port.name: _argument(request, port)
            for port in self.spec.inputs
            if port.required or port.name in request.inputs
        }
        found = self._named(self._run(inputs, self._params(request.params)))
        return {port.name: _result(found[port.name], port) for port in self.spec.outputs}

    def _run(self, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        assert self.function is not None, "it is loaded"
        try:
            if "method" in self.spec.params:  # estimators take arrays by position
                return self.function(*inputs.values(), **params)
            return self.function(**inputs, **params)
        except ClawdbotError:
            raise
        except Exception as error:
            raise EngineFailed(
                f"the function failed: {type(error).__name__}", cause=str(error)
            ) from error

    def _named(self, found: Any) -> Mapping[str, Any]:
        """Return what the function gave, by output.

        Raises:
            EngineFailed: It gave others than the catalogue declares.
        """
        names = [port.name for port in self.spec.outputs]
        if isinstance(found, Mapping) and set(names) <= set(found):
            return found
        if len(names) == 1:
            return {names[0]: found}
        if isinstance(found, tuple) and len(found) == len(names):
            return dict(zip(names, found, strict=True))
        raise EngineFailed(f"the function did not give the outputs {', '.join(names)}")

    def _own_params(self) -> dict[str, Any]:
        return {name: value for name, value in self.spec.params.items() if name not in _OWN}

    def _params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in params.items() if name not in _OWN}
        return {**self._own_params(), **given}

    def _target(self) -> tuple[str, str]:
        """Return module and name of the function to import.

        Raises:
            ModelUnavailable: The catalogue entry names none.
        """
        named = [self.spec.params[key] for key in ("call", "make") if key in self.spec.params]
        text = named[0] if len(named) == 1 else None
        module, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise ModelUnavailable("params need 'call' or 'make': 'package.module:function'")
        return module, name

    def _check_module(self, module: str) -> None:
        """Refuse a module that is not allowed, not installed, or comes with models.

        Raises:
            ModelUnavailable: Says which.
        """
        allowed = parse_allowed(str(self.spec.params.get("allow", "")))
        if not any(module == item or module.startswith(f"{item}.") for item in allowed):
            raise ModelUnavailable(
                f"the workers do not allow the module '{module}'; whoever runs them may, with "
                "CLAWDBOT_PYTHON_ALLOW"
            )
        top = module.partition(".")[0]
        spec = find_spec(top)
        if spec is None:
            raise ModelUnavailable(f"not installed: {top}")
        places = [spec.origin, *(spec.submodule_search_locations or ())]
        root = self.models_dir.resolve()
        if any(place and Path(place).resolve().is_relative_to(root) for place in places):
            raise ModelUnavailable(
                f"'{top}' lies in the models directory; code comes from installed packages only"
            )

    def _folder(self) -> Path | None:
        """Return where the model's source is, for what makes the function.

        Raises:
            ModelUnavailable: It is not below the models directory, or not there.
        """
        if self.spec.source is None:
            return None
        path = (self.models_dir / self.spec.source).resolve()
        if not path.is_relative_to(self.models_dir.resolve()) or not path.exists():
            raise ModelUnavailable(f"there is no '{self.spec.source}' in the models directory")
        return path

    def _check_signature(self, function: Callable[..., Any], text: str) -> None:
        """Refuse a function that cannot take the inputs and params of the catalogue entry.

        Raises:
            ModelUnavailable: Says what it takes.
        """
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # written in C: it will say so when it is called
        names = [port.name for port in self.spec.inputs if port.required]
        own = self._own_params()
        try:
            if "method" in self.spec.params:
                signature.bind(*names, **own)
            else:
                signature.bind(**dict.fromkeys(names), **own)
        except TypeError as error:
            raise ModelUnavailable(f"'{text}' cannot be called as declared: {error}") from error


def parse_allowed(text: str) -> tuple[str, ...]:
    """Read names of modules with commas between them; each stands for what is inside it as well.

    Raises:
        FailedPrecondition: One is no name of a module.
    """
    found = tuple(filter(None, (item.strip() for item in text.split(","))))
    for item in found:
        if not all(part.isidentifier() for part in item.split(".")):
            raise FailedPrecondition(
                f"'{item}' is no name of a module, such as my_package.models",
                field="CLAWDBOT_PYTHON_ALLOW",
            )
    return found


def _argument(request: Request, port: Port) -> Any:
    """Return an input as functions take it: tensors as arrays, the rest as it is.

    Raises:
        InvalidArgument: It is not what the catalogue declares.
    """
    value = request.inputs.get(port.name)
    where = f"inputs.{port.name}"
    match port.kind:
        case "tensor":
            return array_of(check_tensor(value, port), port.name)
        case "text":
            return fields.text(request, port.name)
        case "json":
            if port.name not in request.inputs:
                raise InvalidArgument(f"'{port.name}' is needed", field=where)
            return value
        case "audio" | "image":
            if not isinstance(value, Binary):
                raise InvalidArgument(f"'{port.name}' must be a file", field=where)
            return value


def _result(value: Any, port: Port) -> Value:
    """Return an output as it travels.

    Raises:
        EngineFailed: It is not what the catalogue declares.
    """
    import numpy as np

    fits = True
    match port.kind:
        case "tensor":
            return value if isinstance(value, Tensor) else tensor_of(np.asarray(value), port)
        case "text":
            fits = isinstance(value, str)
        case "audio" | "image":
            fits = isinstance(value, Binary)
        case "json":
            try:
                return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
            except TypeError as error:
                raise EngineFailed(f"output '{port.name}' is no JSON: {error}") from error
    if not fits:
        raise EngineFailed(
            f"output '{port.name}' is declared {port.kind}, not {type(value).__name__}"
        )
    return value
