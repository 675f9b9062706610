"""Estimators of scikit-learn, fitted by whoever converts them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from clawdbot.conversion.source import Feeds, Source, TensorInfo, need
from schemas.errors import FailedPrecondition, InvalidArgument


if TYPE_CHECKING:
    from numpy.typing import NDArray

ML_OPSET = 3
"""Of the domain ai.onnx.ml; what onnxruntime has known for years."""


class SklearnSource(Source):
    """Takes `X` FP32 [rows, features].

    Gives `label` and `probabilities` where it classifies, else `variable`.
    """

    packages: tuple[str, ...] = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy")

    def __init__(self, estimator: Any, name: str) -> None:
        need("convert", "skl2onnx", "sklearn")
        features = getattr(estimator, "n_features_in_", None)
        if not isinstance(features, int):
            raise InvalidArgument(f"what {name} gives is not fitted: it has no n_features_in_")
        self.name = name
        self._estimator = estimator
        self.inputs = [TensorInfo("X", "FP32", ("rows", features))]

    @property
    def _classifies(self) -> bool:
        return hasattr(self._estimator, "predict_proba")

    @override
    def run(self, feeds: Feeds) -> "dict[str, NDArray[Any]]":
        import numpy as np

        rows = feeds["X"]
        if self._classifies:
            labels = np.asarray(self._estimator.predict(rows))
            if labels.dtype.kind in "US":
                labels = labels.astype(object)
            return {"label": labels, "probabilities": self._estimator.predict_proba(rows)}
        act = getattr(self._estimator, "predict", None) or self._estimator.transform
        found = np.asarray(act(rows))
        return {"variable": found.reshape(len(rows), -1)}

    @override
    def write(self, path: Path, opset: int) -> None:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType

        options = {id(self._estimator): {"zipmap": False}} if self._classifies else None
        names = [("X", FloatTensorType([None, self.inputs[0].shape[1]]))]
        try:
            proto = skl2onnx.convert_sklearn(
                self._estimator,
                initial_types=names,
                options=options,
                target_opset={"": opset, "ai.onnx.ml": ML_OPSET},
            )
        except Exception as error:
            raise FailedPrecondition(
                f"skl2onnx cannot write {type(self._estimator).__name__} as ONNX with opset "
                f"{opset}: {str(error)[:400]}"
            ) from error
        path.write_bytes(proto.SerializeToString())
