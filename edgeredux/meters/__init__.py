"""Energy meters, one a file. Name -> "module:Class"."""

TABLE = {
    "zeus": "edgeredux.meters.zeus_rapl:ZeusCpu",
    "zeus_gpu": "edgeredux.meters.zeus_gpu:ZeusGpu",
    "jetson": "edgeredux.meters.jetson:Jetson",
    "android_battery": "edgeredux.meters.android_battery:AndroidBattery",
    "csv": "edgeredux.meters.power_csv:PowerCsv",
    "model": "edgeredux.meters.model:EnergyModel",
}
