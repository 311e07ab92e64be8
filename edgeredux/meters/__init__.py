"""Energy meters, one a file. Name -> "module:Class"."""

TABLE = {
    "zeus": "edgeredux.meters.zeus_rapl:ZeusCpu",
    "model": "edgeredux.meters.model:EnergyModel",
}
