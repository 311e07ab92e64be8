"""TFLite passes, one a file. Name -> "module:Class"."""

TABLE = {
    "tflite_int8_dynamic": "edgeredux.passes.tflite.quantize:TfliteInt8Dynamic",
    "tflite_int8_static": "edgeredux.passes.tflite.quantize:TfliteInt8Static",
    "tflite_mixed": "edgeredux.passes.tflite.mixed:TfliteMixed",
    "tflite_sparse_weights": "edgeredux.passes.tflite.sparse_weights:TfliteSparseWeights",
}
