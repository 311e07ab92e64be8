"""ONNX passes, one a file. Name -> "module:Class"."""

TABLE = {
    "fold": "edgeredux.passes.onnx.fold:Fold",
    "gelu": "edgeredux.passes.onnx.gelu:Gelu",
    "fuse": "edgeredux.passes.onnx.fuse:Fuse",
    "decoder_fusions": "edgeredux.passes.onnx.decoder_fusions:DecoderFusions",
    "dead_structure": "edgeredux.passes.onnx.dead_structure:DeadStructure",
    "low_rank": "edgeredux.passes.onnx.low_rank:LowRank",
    "tile": "edgeredux.passes.onnx.tile:Tile",
    "residual_sum": "edgeredux.passes.onnx.residual_sum:ResidualSum",
    "fix_shapes": "edgeredux.passes.onnx.fix_shapes:FixShapes",
    "clamp_mask": "edgeredux.passes.onnx.clamp_mask:ClampMask",
    "smooth_scales": "edgeredux.passes.onnx.smooth_scales:SmoothScales",
    "int8_dynamic": "edgeredux.passes.onnx.int8_dynamic:Int8Dynamic",
    "int4_weights": "edgeredux.passes.onnx.int4_weights:Int4Weights",
    "int8_weights": "edgeredux.passes.onnx.int8_weights:Int8Weights",
    "sparse_initializer": "edgeredux.passes.onnx.sparse_initializer:SparseInitializer",
    "two_four": "edgeredux.passes.onnx.two_four:TwoFour",
    "fp16": "edgeredux.passes.onnx.fp16:Fp16",
    "int8_static": "edgeredux.passes.onnx.int8_static:Int8Static",
    "qdq_static": "edgeredux.passes.onnx.qdq_static:QdqStatic",
}
