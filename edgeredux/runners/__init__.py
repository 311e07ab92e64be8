"""Runners: one device, runtime or simulator a file. Name -> "module:Class"."""

TABLE = {
    "onnxruntime": "edgeredux.runners.onnxruntime_cpu:OnnxRuntimeCpu",
    "litert": "edgeredux.runners.litert:Litert",
    "vela": "edgeredux.runners.vela:Vela",
    "qnn": "edgeredux.runners.qnn:Qnn",
    "cuda": "edgeredux.runners.cuda:Cuda",
    "replay": "edgeredux.runners.replay:Replay",
    "estimate": "edgeredux.runners.estimate:Estimate",
    "qemu_arm64": "edgeredux.runners.qemu_arm64:QemuArm64",
    "ssh": "edgeredux.runners.ssh:Ssh",
}
