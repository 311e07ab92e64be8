"""Exporters. Name -> "module:Class"."""

TABLE = {
    "torch-onnx": "edgeredux.export.to_onnx:TorchOnnx",
    "optimum": "edgeredux.export.optimum:Optimum",
    "litert-torch": "edgeredux.export.to_tflite:LitertTorch",
}
